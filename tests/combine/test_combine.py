"""The weighted sum itself, on results written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tokenreward.combine import combine
from tokenreward.errors import Loading
from tokenreward.wire import ErrorDetail, ItemResult, ScorerResult


def result(*rewards: float, score: float | None = None) -> ScorerResult:
    return ScorerResult(rewards=np.array(rewards, np.float32), score=score)


def keyed(**results: ScorerResult) -> ItemResult:
    return ItemResult(index=0, scorers=results)


def rewards_of(item: ItemResult) -> list[float]:
    assert isinstance(item.rewards, np.ndarray)
    assert item.rewards.dtype == np.float32
    return list(item.rewards.tolist())


def test_sum_is_taken_in_float64() -> None:
    item = keyed(a=result(1e8), b=result(1.0), c=result(1e8))
    assert combine([item], {"a": 1.0, "b": 1.0, "c": -1.0}) == []
    assert rewards_of(item) == [1.0]


def test_rewards_are_added_up_however_they_travelled() -> None:
    base64, as_bytes = "AACAPwAAAEA=", np.array([1.0, 2.0], "<f4").tobytes()
    item = keyed(
        a=ScorerResult(rewards=[1.0, 2.0]),
        b=ScorerResult(rewards=base64),
        c=ScorerResult(rewards=as_bytes),
    )
    combine([item], {"a": 1.0, "b": 10.0, "c": 100.0})
    assert rewards_of(item) == [111.0, 222.0]


def test_scorer_without_a_score_leaves_the_score_null_and_the_rewards_there() -> None:
    item = keyed(a=result(1.0, score=1.0), b=result(2.0))
    combine([item], {"a": 1.0, "b": 1.0})
    assert rewards_of(item) == [3.0]
    assert item.score is None


def test_only_the_scorers_that_are_weighed_count() -> None:
    failure = ScorerResult(error=ErrorDetail(code="empty_response", message="it is empty"))
    item = keyed(a=result(1.0, score=1.0), b=failure)
    combine([item], {"a": 2.0})
    assert (rewards_of(item), item.score) == ([2.0], 2.0)


def test_an_error_of_a_scorer_that_is_weighed_leaves_both_null_and_makes_none() -> None:
    failure = ScorerResult(error=ErrorDetail(code="empty_response", message="it is empty"))
    item = keyed(a=result(1.0, score=1.0), b=failure)
    assert combine([item], {"a": 1.0, "b": 1.0}) == []
    assert (item.rewards, item.score, item.error) == (None, None, None)


def test_a_sum_that_is_not_finite_is_an_error_of_the_item_and_its_code_is_told() -> None:
    item = keyed(a=result(1.0, score=1.0))
    assert combine([item], {"a": 1e300}) == ["non_finite"]
    assert (item.rewards, item.score) == (None, None)
    assert item.error is not None
    assert (item.error.code, item.error.param) == ("non_finite", "combine")


def test_nothing_is_added_up_while_units_are_in_doubt_and_the_item_says_why() -> None:
    failure = ScorerResult(error=ErrorDetail(code="empty_response", message="it is empty"))
    good, bad = keyed(a=result(1.0), b=result(2.0)), keyed(a=result(1.0), b=failure)
    codes = combine([good, bad], {"a": 1.0, "b": 1.0}, doubt=Loading("`b` loads"))
    assert codes == ["loading"]
    assert (good.rewards, bad.rewards, bad.error) == (None, None, None)
    assert good.error is not None
    assert (good.error.message, good.error.param) == ("`b` loads", "combine")
    assert good.error.retryable


def test_vectors_of_unlike_length_are_never_cut_to_fit() -> None:
    with pytest.raises(ValueError, match="shape"):
        combine([keyed(a=result(1.0), b=result(1.0, 2.0))], {"a": 1.0, "b": 1.0})
