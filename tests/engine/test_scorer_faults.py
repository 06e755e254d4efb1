"""Whatever a scorer of somebody else's gives in place of signals, its item alone fails, for that
scorer alone."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tokenreward.contract import Outputs, Sample, Signals
from tokenreward.errors import InternalError
from tokenreward.scorers.constant import Scorer as Constant
from tokenreward.wire import RewardsRequest, parse

POISON = 77
VALUES = np.ones(2, dtype=np.float32)


class Fake:
    """Has the names of Signals, and what a test puts there: types are the checker's business only
    in tests."""

    def __new__(cls, **fields: Any) -> Signals:
        made = object.__new__(Signals)
        for name, value in {
            "score": 1.0,
            "values": VALUES,
            "kind": "levels",
            "weights": None,
            "scores": None,
            "step_scores": None,
            "step_ends": None,
            "tables": {},
        }.items():
            object.__setattr__(made, name, fields.get(name, value))
        return made


class Scorer(Constant):
    """As `constant`, but of a response with the poison it gives what the test says."""

    instead: Callable[[], Any]

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Any) -> Any:
        if POISON in sample.response_ids:
            return type(self).instead()
        return super().score(sample, outputs, options)


def fails() -> Signals:
    raise InternalError("the scorer's, not ours")


FAULTS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a list": lambda: [0.1, 0.2],
    "a list of values": lambda: Fake(values=[0.1, 0.2]),
    "values that are words": lambda: Fake(values=np.array(["a", "b"])),
    "no values": lambda: Fake(values=None),
    "a word for a score": lambda: Fake(score="high"),
    "two scores": lambda: Fake(score=np.ones(2)),
    "steps that are lists": lambda: Fake(step_scores=[0.5], step_ends=[1]),
    "steps without ends": lambda: Fake(step_scores=np.array([0.5], dtype=np.float32)),
    "an error of the request": fails,
}


@pytest.fixture
def ask(make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    async def answer(instead: Callable[[], Any], **more: Any) -> list[dict[str, Any]]:
        module = types.ModuleType("theirs")
        module.Mine = type("Mine", (Scorer,), {"instead": staticmethod(instead)})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "theirs", module)
        engine = make_engine("causal_lm", [{"type": "theirs:Mine", "name": "mine"}, "constant"])
        items = [{"prompt": [5], "response": [10, token]} for token in (11, POISON, 12)]
        reply = await engine.score(
            parse(RewardsRequest, {"scorers": ["mine", "constant"], "items": items, **more})
        )
        await engine.close()
        return list(reply.items)

    return answer


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_no_signals_fails_its_item_and_scorer_alone(
    ask: Callable[..., Any], fault: str
) -> None:
    items = await ask(FAULTS[fault], credit={"mine": {"name": "values"}})
    found = [
        [scored.error and scored.error.code for scored in item.scorers.values()] for item in items
    ]
    assert found == [[None, None], ["scorer_failed", None], [None, None]]


async def test_a_score_that_is_missing_is_named_where_the_credit_is_made_of_it(
    ask: Callable[..., Any],
) -> None:
    items = await ask(lambda: Fake(score=None), credit={"mine": {"name": "last"}})
    error = items[1].scorers["mine"].error
    assert error.code == "scorer_failed"
    assert "no score" in error.message
    assert items[0].scorers["mine"].error is None


@pytest.mark.parametrize("score", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
async def test_a_score_of_a_librarys_own_number_is_a_number_in_the_reply(
    ask: Callable[..., Any], score: Any
) -> None:
    items = await ask(lambda: Fake(score=score), credit={"mine": {"name": "values"}})
    assert type(items[1].scorers["mine"].score) is float
    assert items[1].scorers["mine"].score == 0.5


@pytest.mark.parametrize(("method", "given"), [("needs", None), ("rows", None), ("rows", (None,))])
async def test_a_scorer_that_asks_for_nothing_that_can_be_read_leaves_the_others_alone(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, method: str, given: Any
) -> None:
    engine = make_engine("causal_lm", ["endogenous", {"type": "endogenous", "name": "theirs"}])
    theirs = engine.scorers["theirs"].scorer
    monkeypatch.setattr(theirs, method, lambda *arguments: given, raising=False)
    body = {"scorers": ["endogenous", "theirs"], "items": [{"prompt": [5], "response": [6]}]}
    results = (await engine.score(parse(RewardsRequest, body))).items[0].scorers
    assert results["theirs"].error.code == "scorer_failed"
    assert results["endogenous"].error is None
