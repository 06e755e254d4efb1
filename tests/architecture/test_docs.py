"""The README is true: every setting, metric, scorer type, option, credit and error stands in it as
the code has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from architecture.test_layers import ORDER
from tokenreward import credit as credits
from tokenreward import metrics
from tokenreward.errors import ItemError, RequestError, RewardError
from tokenreward.scorers import known_types, resolve
from tokenreward.settings import DeploymentSettings, ScorerSettings, Settings
from tokenreward.wire import RewardsRequest, parse_json

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = (
        field.default
        if field.default is not PydanticUndefined
        else field.get_default(call_default_factory=True)
    )
    return f"`{json.dumps(default)}`"


def setting_rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {shown_default(field)} | {field.description} |"


def leaves(tree: type[RewardError]) -> Iterator[type[RewardError]]:
    for error in tree.__subclasses__():
        yield from leaves(error) if error.__subclasses__() else [error]


@pytest.mark.parametrize("model", [Settings, DeploymentSettings, ScorerSettings])
def test_every_setting_has_its_row(model: type[BaseModel]) -> None:
    for row in setting_rows(model):
        assert row in README, f"README lacks or misstates:\n{row}"


def test_every_metric_has_its_row() -> None:
    for row in metrics.TABLE:
        labels = ", ".join(f"`{label}`" for label in row.labels) or "-"
        line = f"| `{metrics.PREFIX}{row.name}` | {row.kind} | {labels} | {row.help} |"
        assert line in README, f"README lacks or misstates:\n{line}"


def test_every_scorer_type_and_each_of_its_options_is_there() -> None:
    for name in known_types():
        assert f"| `{name}` |" in README
        for option, field in resolve(name).Options.model_fields.items():
            row = f"| `{name}` | `{option}` | `{json.dumps(field.default)}` | {field.description} |"
            assert row in README, f"README lacks or misstates:\n{row}"


def test_every_credit_is_there() -> None:
    for name in credits.NEEDS:
        assert f"| `{name}` |" in README


def test_every_error_code_is_there_with_its_status() -> None:
    for error in {*leaves(RequestError), *leaves(ItemError)}:
        line = next(
            (
                line
                for line in README.splitlines()
                if line.startswith("|") and f"`{error.code}`" in line
            ),
            "",
        )
        assert line.startswith(f"| {error.status} |"), error.code


def test_settings_and_metrics_that_are_gone_have_no_row() -> None:
    known = {f"{metrics.PREFIX}{row.name}" for row in metrics.TABLE}
    shown = set(re.findall(rf"^\| `({metrics.PREFIX}\w+)` \|", README, flags=re.MULTILINE))
    assert shown == known


def test_the_request_in_the_readme_parses() -> None:
    bodies = re.findall(r"```json\n(\{\"scorer.*?\})\n```", README, flags=re.DOTALL)
    assert bodies
    for body in bodies:
        parse_json(RewardsRequest, body.encode())


def test_the_guide_has_the_layers_that_are_tested() -> None:
    guide = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    told = re.findall(r"`(cli > [^`]*)`", guide)
    assert told == [" > ".join(", ".join(group) for group in ORDER if group != ("demo",))]
