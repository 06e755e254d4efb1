"""Reasoning steps on their way to the reply: in the caller's units, and only from a scorer that
gives them rightly."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tokenreward.contract import Outputs, Sample, Signals
from tokenreward.scorers.constant import Scorer as Constant
from tokenreward.wire import ItemResult, RewardsRequest, parse

TEXT = "It is 4. Yes, no doubt."


class Scorer(Constant):
    """Steps as the test says; rewards as `constant`."""

    last: Sequence[int] = ()
    scores: Sequence[float] = ()

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Any) -> Signals:
        signals = super().score(sample, outputs, options)
        scores, ends = np.array(self.scores, dtype=np.float32), np.array(self.last, dtype=np.int64)
        return Signals(signals.score, signals.values, step_scores=scores, step_ends=ends)


@pytest.fixture
def ask(make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`await ask(last, scores, **item)`: the answer to one item of seven ids, of a scorer that says
    so."""

    async def answer(last: Sequence[int], scores: Sequence[float], **item: Any) -> ItemResult:
        module = types.ModuleType("their_steps")
        module.Mine = type("Mine", (Scorer,), {"last": last, "scores": scores})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "their_steps", module)
        engine = make_engine(
            "causal_lm", [{"type": "their_steps:Mine", "name": "mine"}, "constant"]
        )
        items = [{"prompt": [5], "response": [*range(10, 17)], **item}]
        reply = await engine.score(parse(RewardsRequest, {"scorer": "mine", "items": items}))
        await engine.close()
        return reply.items[0]

    return answer


async def test_each_token_names_its_step(ask: Callable[..., Any]) -> None:
    item = await ask([1, 2, 6], [0.5, 0.25, 1.0])
    assert item.step_ids == [0, 0, 1, 2, 2, 2, 2]
    assert item.step_scores == [0.5, 0.25, 1.0]


async def test_masked_tokens_name_their_step_too(ask: Callable[..., Any]) -> None:
    item = await ask([1, 6], [0.5, 1.0], mask=[0, 0, 1, 1, 0, 1, 1])
    assert item.step_ids == [0, 0, 1, 1, 1, 1, 1]


async def test_a_span_names_the_step_of_its_last_token_and_an_empty_one_the_step_before_it(
    ask: Callable[..., Any], make_engine: Callable[..., Any]
) -> None:
    shown = await make_engine("causal_lm", ["constant"]).score(
        parse(
            RewardsRequest,
            {
                "scorer": "constant",
                "items": [{"prompt": "", "response": TEXT}],
                "return_tokens": True,
            },
        )
    )
    ends = [token.span[1] for token in shown.items[0].tokens]
    spans = [[0, 0], [0, ends[1]], [ends[1], ends[4]], [ends[4], ends[4]], [ends[4], len(TEXT)]]
    item = await ask([1, 3, len(ends) - 1], [1.0, 2.0, 3.0], prompt="", response=TEXT, spans=spans)
    assert item.step_ids == [0, 0, 2, 2, 2]
    assert len(item.step_scores) == 3


@pytest.mark.parametrize(
    ("last", "scores"),
    [
        ([1, 5], [1.0, 1.0]),
        ([1, 1, 6], [1.0] * 3),
        ([3, 1, 6], [1.0] * 3),
        ([1, 6], [1.0]),
        ([], []),
        ([7], [1.0]),
    ],
)
async def test_steps_that_do_not_divide_the_response_are_the_scorers_fault(
    ask: Callable[..., Any], last: list[int], scores: list[float]
) -> None:
    item = await ask(last, scores)
    assert item.error.code == "scorer_failed"
    assert item.step_scores is None


async def test_a_step_score_that_is_not_finite_is_an_error(ask: Callable[..., Any]) -> None:
    item = await ask([1, 6], [1.0, float("nan")])
    assert item.error.code == "non_finite"
