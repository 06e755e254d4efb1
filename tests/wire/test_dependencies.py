"""Which scorers a request needs besides its own, whoever asks."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.errors import InvalidField
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.dependencies import (
    Dependency,
    dependencies,
    listed_score_source,
    request_dependencies,
    score_source,
)

KL = {"kl": {"coef": 0.1, "reference": "sft"}}
ITEM = {"prompt": "a", "response": "b"}


def test_a_reference_and_a_score_source_are_dependencies_with_the_path_that_names_them() -> None:
    needed = dependencies({"score_from": "rm"}, KL)
    assert needed == [Dependency("sft", "ref_logprobs"), Dependency("rm", "score")]
    assert [each.param for each in needed] == ["credit.kl.reference", "options.score_from"]


@pytest.mark.parametrize(
    ("options", "names"), [({}, ["rm"]), ({"score_from": None}, []), ({"score_from": "b"}, ["b"])]
)
def test_the_operators_score_source_holds_unless_the_request_says_otherwise(
    options: dict[str, Any], names: list[str]
) -> None:
    assert [each.name for each in dependencies(options, {}, default="rm")] == names


def test_keyed_requests_have_the_scorer_in_the_path_and_each_scorer_its_own_dependencies() -> None:
    request = parse(
        RewardsRequest,
        {
            "scorers": ["a", "b"],
            "options": {"a": {"score_from": "c"}},
            "credit": {"b": KL},
            "items": [ITEM],
        },
    )
    (score,), (reference,) = (request_dependencies(request, name) for name in ("a", "b"))
    assert (score.name, score.param) == ("c", "options.a.score_from")
    assert (reference.name, reference.param) == ("sft", "credit.b.kl.reference")


@pytest.mark.parametrize(
    ("options", "credit", "param"),
    [
        ({"score_from": 3}, {}, "options.score_from"),
        ({}, {"kl": {"reference": ["sft"]}}, "credit.kl.reference"),
    ],
)
def test_a_name_that_is_no_string_is_refused_where_it_stands(
    options: Any, credit: Any, param: str
) -> None:
    with pytest.raises(InvalidField, match="name of a scorer") as caught:
        dependencies(options, credit)
    assert caught.value.param == param


@pytest.mark.parametrize("value", [None, 3, [], "text", {"kl": 3}, {"kl": {"reference": None}}])
def test_options_and_credit_of_any_shape_are_looked_through(value: Any) -> None:
    assert dependencies(value, value) == []


def test_an_operators_options_and_their_listing_name_the_same_source() -> None:
    assert score_source({"score_from": "rm"}) == "rm"
    assert listed_score_source({"options": {"score_from": {"default": "rm"}}}) == "rm"
    for entry in (None, {}, {"options": 3}, {"options": {"score_from": {"default": None}}}):
        assert listed_score_source(entry) is None
    assert score_source({"score_from": 3}) is None
