"""`combine` in the engine: the one entry to scoring does what the request says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenreward.errors import InvalidField, UnitsDiffer
from tokenreward.wire import RewardsRequest, parse

ITEM = {"prompt": [5, 6], "response": [10, 11, 12]}
WEIGHTS = {"endogenous": 0.5, "constant": -2.0}


def request(**fields: Any) -> RewardsRequest:
    body = {"scorers": list(WEIGHTS), "items": [ITEM], "combine": WEIGHTS, **fields}
    return parse(RewardsRequest, body)


@pytest.fixture
def engine(make_engine: Callable[..., Any]) -> Any:
    return make_engine("causal_lm", ["endogenous", "constant"])


async def test_rewards_and_score_are_the_weighted_sums_of_the_scorers(engine: Any) -> None:
    (item,) = (await engine.score(request())).items
    parts = {name: item.scorers[name] for name in WEIGHTS}
    rewards = sum(weight * parts[name].rewards.astype(float) for name, weight in WEIGHTS.items())
    np.testing.assert_array_equal(item.rewards, rewards.astype(np.float32))
    score = sum(weight * parts[name].score for name, weight in WEIGHTS.items())
    assert item.score == pytest.approx(score, rel=1e-12)


async def test_an_error_of_one_scorer_leaves_no_sum(engine: Any) -> None:
    bad = {**ITEM, "response": [10, 10**6, 12]}
    good, failed = (await engine.score(request(items=[ITEM, bad]))).items
    assert good.rewards is not None
    assert (failed.rewards, failed.score, failed.error) == (None, None, None)
    assert {result.error.code for result in failed.scorers.values()} == {"token_out_of_vocabulary"}


async def test_a_sum_that_is_not_finite_is_the_items_error_and_is_counted(
    make_engine: Callable[..., Any],
) -> None:
    counts: dict[str, float] = {}

    def report(name: str, value: float = 1.0, **labels: str) -> None:
        if name == "errors_total":
            counts[labels["code"]] = counts.get(labels["code"], 0.0) + value

    engine = make_engine("causal_lm", ["endogenous", "constant"], report=report)
    (item,) = (await engine.score(request(combine={"constant": 1e308, "endogenous": 1e308}))).items
    assert item.error.code == "non_finite"
    assert item.error.param == "combine"
    assert item.rewards is None
    assert counts == {"non_finite": 1.0}


async def test_units_that_tokens_of_a_text_make_cannot_be_combined(engine: Any) -> None:
    text = {"prompt": "2+2?", "response": "It is 4."}
    with pytest.raises(UnitsDiffer):
        await engine.score(request(items=[text]))


async def test_a_weight_of_a_scorer_that_is_not_asked_is_refused(engine: Any) -> None:
    with pytest.raises(InvalidField) as caught:
        await engine.score(request(combine={"entropy": 1.0}))
    assert caught.value.param == "combine"
