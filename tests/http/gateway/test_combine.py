"""The weighted sum itself, on replies written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.combine import combine
from tokenreward.wire import RewardsRequest, parse

ITEM = {"prompt": [1], "response": [2]}


def request(**weights: float) -> RewardsRequest:
    return parse(RewardsRequest, {"scorers": list(weights), "combine": weights, "items": [ITEM]})


def keyed(**results: Any) -> dict[str, Any]:
    whole = {name: {"score": None, "error": None, **result} for name, result in results.items()}
    return {"index": 0, "rewards": None, "score": None, "error": None, "scorers": whole}


def test_sum_is_taken_in_float64() -> None:
    item = keyed(a={"rewards": [1e8]}, b={"rewards": [1.0]}, c={"rewards": [1e8]})
    combine([item], request(a=1.0, b=1.0, c=-1.0))
    assert item["rewards"].tolist() == [1.0]
    assert item["rewards"].dtype == "float32"


def test_scorer_without_a_score_leaves_the_score_null_and_the_rewards_there() -> None:
    item = keyed(a={"rewards": [1.0], "score": 1.0}, b={"rewards": [2.0]})
    combine([item], request(a=1.0, b=1.0))
    assert item["rewards"].tolist() == [3.0]
    assert item["score"] is None


def test_only_the_scorers_that_are_weighed_count() -> None:
    item = keyed(
        a={"rewards": [1.0], "score": 1.0}, b={"rewards": None, "error": {"code": "empty_response"}}
    )
    asked = parse(RewardsRequest, {"scorers": ["a", "b"], "combine": {"a": 2.0}, "items": [ITEM]})
    combine([item], asked)
    assert (item["rewards"].tolist(), item["score"]) == ([2.0], 2.0)


def test_vectors_of_unlike_length_are_never_cut_to_fit() -> None:
    with pytest.raises(ValueError, match="shape"):
        combine([keyed(a={"rewards": [1.0]}, b={"rewards": [1.0, 2.0]})], request(a=1.0, b=1.0))
