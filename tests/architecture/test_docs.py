"""The README and the pages of docs/ are true: every setting, metric, scorer type, option, credit
and error stands in them as the code has it."""

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
from fakes.pages import ROOT, code_blocks, documentation, page, user_pages
from tokenreward import credit as credits
from tokenreward import metrics
from tokenreward.errors import ItemError, RequestError, RewardError
from tokenreward.scorers import known_types, resolve
from tokenreward.settings import (
    AutoscalingSettings,
    DeploymentSettings,
    HeadSettings,
    ProtocolSettings,
    ScorerSettings,
    Settings,
)
from tokenreward.wire import RewardsRequest, parse_json

DOCS = documentation()


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


def metric_row(spec: metrics.MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "-"
    return f"| `{metrics.PREFIX}{spec.name}` | {spec.kind} | {labels} | {spec.help} |"


def leaves(tree: type[RewardError]) -> Iterator[type[RewardError]]:
    for error in tree.__subclasses__():
        yield from leaves(error) if error.__subclasses__() else [error]


@pytest.mark.parametrize(
    "model",
    [
        Settings,
        DeploymentSettings,
        AutoscalingSettings,
        HeadSettings,
        ScorerSettings,
        ProtocolSettings,
    ],
)
def test_every_setting_has_its_row(model: type[BaseModel]) -> None:
    for row in setting_rows(model):
        assert row in DOCS, f"the pages lack or misstate:\n{row}"


def test_every_metric_has_its_row() -> None:
    for spec in metrics.TABLE:
        line = metric_row(spec)
        assert line in DOCS, f"the pages lack or misstate:\n{line}"


def test_every_scorer_type_and_each_of_its_options_is_there() -> None:
    for name in known_types():
        for path in ("README.md", "docs/scorers.md"):
            assert f"\n| `{name}` |" in page(path), f"{path} has no row for `{name}`"
        for option, field in resolve(name).Options.model_fields.items():
            row = f"| `{name}` | `{option}` | `{json.dumps(field.default)}` | {field.description} |"
            assert row in DOCS, f"the pages lack or misstate:\n{row}"


def test_every_credit_is_there() -> None:
    for name in credits.NEEDS:
        assert f"| `{name}` |" in DOCS


def test_every_error_code_is_there_with_its_status() -> None:
    for error in {*leaves(RequestError), *leaves(ItemError)}:
        line = next(
            (
                line
                for line in DOCS.splitlines()
                if line.startswith("|") and f"`{error.code}`" in line
            ),
            "",
        )
        assert line.startswith(f"| {error.status} |"), error.code


def test_settings_and_metrics_that_are_gone_have_no_row() -> None:
    known = {f"{metrics.PREFIX}{row.name}" for row in metrics.TABLE}
    shown = set(re.findall(rf"^\| `({metrics.PREFIX}\w+)` \|", DOCS, flags=re.MULTILINE))
    assert shown == known


def test_the_requests_on_the_pages_parse() -> None:
    bodies = [body for body in code_blocks(DOCS, "json") if body.startswith('{"scorer')]
    assert bodies
    for body in bodies:
        parse_json(RewardsRequest, body.encode())


def test_the_metric_of_the_guide_is_a_row_a_report_and_a_line_of_docs() -> None:
    section = page("CONTRIBUTING.md").partition("\n## A new metric\n")[2].partition("\n## ")[0]
    row, call, line = re.findall(r"^    (.+)$", section, flags=re.MULTILINE)
    spec = eval(row, {"MetricSpec": metrics.MetricSpec})  # noqa: S307 - our own page
    process = metrics.Metrics([*metrics.TABLE, spec])
    eval(call, {"report": process.report})  # noqa: S307
    rendered = metrics.render({("rm", "0"): process.snapshot()}).decode()
    assert f'{metrics.PREFIX}{spec.name}{{deployment="rm",replica="0",scorer="rm"}} 2.0' in rendered
    assert line == metric_row(spec)
    assert line not in DOCS


def test_the_readme_names_every_room() -> None:
    block = (
        page("README.md").partition("    service/tokenreward/\n")[2].partition("\n    clients/")[0]
    )
    entries = " ".join(line[6:31] for line in block.splitlines())
    rooms = {name.strip("/,").removesuffix(".py") for name in entries.split()}
    assert {room for group in ORDER for room in group} - rooms == set()


def test_the_guide_has_the_layers_that_are_tested() -> None:
    guide = " ".join(page("CONTRIBUTING.md").split())
    told = re.findall(r"`(cli > [^`]*)`", guide)
    assert told == [" > ".join(", ".join(group) for group in ORDER if group != ("demo",))]


def broken_links(pages: dict[str, str]) -> list[str]:
    """Relative links to a file that is not there, or to a heading that its page lacks."""
    broken = []
    for path, text in pages.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in link:
                continue
            target, _, anchor = link.partition("#")
            file = (ROOT / path).parent / target if target else ROOT / path
            if not file.exists() or not has_heading(file, anchor):
                broken.append(f"{path}: {link}")
    return broken


def has_heading(file: Path, anchor: str) -> bool:
    """Whether a page has the heading of an anchor, as GitHub forms it. No anchor is there."""
    if not anchor:
        return True
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    slugs = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return anchor in {slug.replace(" ", "-") for slug in slugs}


def test_no_link_between_the_pages_is_broken() -> None:
    assert broken_links({**user_pages(), "CONTRIBUTING.md": page("CONTRIBUTING.md")}) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](docs/http.md) [b](docs/ftp.md) [c](docs/http.md#errors-of-nobody) [d](https://x.y)"
    assert broken_links({"README.md": text}) == [
        "README.md: docs/ftp.md",
        "README.md: docs/http.md#errors-of-nobody",
    ]


def test_the_readme_is_short_and_links_every_page() -> None:
    readme = page("README.md")
    assert len(readme.splitlines()) < 400
    for path in user_pages():
        assert path == "README.md" or f"]({path})" in readme


@pytest.mark.parametrize("name", sorted(file.name for file in (ROOT / "docs/trainers").iterdir()))
def test_each_trainers_page_says_which_estimator_uses_the_rewards(name: str) -> None:
    text = (ROOT / "docs/trainers" / name).read_text()
    assert re.search(r"\b([Ee]stimator|GAE|GRPO|gae)", text) is not None
