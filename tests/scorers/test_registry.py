"""The registry: a file is a type, a third party's is `package.module:Class`, everything else is
refused by name."""

from __future__ import annotations

import sys
import types

import pytest
from pydantic import ValidationError

from tokenreward.contract import Scorer
from tokenreward.scorers import known_types, resolve
from tokenreward.scorers.constant import Scorer as Constant


@pytest.mark.parametrize("name", known_types())
def test_every_file_is_a_type(name: str) -> None:
    assert isinstance(resolve(name), Scorer)


def test_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(LookupError, match=r"no scorer type `endogenus`; known are .*endogenous"):
        resolve("endogenus")


def test_a_third_partys_class_is_found_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = types.ModuleType("their_scorers")
    theirs.Mine = type("Mine", (Constant,), {})  # type: ignore[attr-defined]
    theirs.NotAScorer = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_scorers", theirs)
    assert type(resolve("their_scorers:Mine")).__name__ == "Mine"
    with pytest.raises(LookupError, match="not a subclass"):
        resolve("their_scorers:NotAScorer")
    with pytest.raises(LookupError, match="cannot be imported"):
        resolve("their_scorers:Missing")
    with pytest.raises(LookupError, match="cannot be imported"):
        resolve("no_such_package:Mine")


@pytest.mark.parametrize("name", known_types())
def test_a_list_among_the_options_is_left_at_its_first_wrong_entry_or_after_a_few(
    name: str,
) -> None:
    """A report on each of millions of wrong entries would take gigabytes."""
    for field in resolve(name).Options.model_fields:
        with pytest.raises(ValidationError) as caught:
            resolve(name).Options.model_validate({field: [object()] * 10_000})
        assert caught.value.error_count() <= 100, field
