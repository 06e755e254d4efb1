"""A third party's scorer says in its class what other scorers can have of it, and the engine's
listing says it on: nothing else knows the scorer by name."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from tokenreward.contract import Needs, Outputs, Sample, Scorer, Signals
from tokenreward.contract import Options as ContractOptions
from tokenreward.wire import RewardsRequest, parse


class LogProbs(Scorer):
    """log pi of each token, or its negative: the surprise."""

    class Options(ContractOptions):
        sign: int = -1

    task = "causal_lm"
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "sum of the values"
    log_probs_options: ClassVar[dict[str, Any] | None] = {"sign": 1}

    def needs(self, options: Options) -> Needs:
        return Needs(temperatures=frozenset({1.0}))

    def score(self, sample: Sample, outputs: tuple[Outputs], options: Options) -> Signals:
        values = (options.sign * outputs[0].log_probs(1.0)).astype(np.float32)
        return Signals(score=float(sample.unmasked(values).sum()), values=values)


class Spreads(LogProbs):
    """It spreads a score that another scorer may give."""

    class Options(LogProbs.Options):
        score_from: str | None = None

    log_probs_options = None
    takes = frozenset({"score"})


@pytest.fixture(autouse=True)
def their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("theirs")
    module.__dict__.update(LogProbs=LogProbs, Spreads=Spreads)
    monkeypatch.setitem(sys.modules, "theirs", module)


async def test_a_third_partys_language_model_scorer_is_listed_as_a_reference_and_gives_log_probs(
    make_engine: Callable[..., Any],
) -> None:
    theirs = {"type": "theirs:LogProbs", "name": "surprise"}
    engine = make_engine("causal_lm", [theirs, "endogenous", "entropy"])
    listing = {entry["name"]: entry for entry in engine.describe()}
    assert listing["surprise"]["log_probs_options"] == {"sign": 1}
    assert listing["endogenous"]["log_probs_options"] == {"form": "logprob"}
    assert listing["entropy"]["log_probs_options"] is None
    names = ["surprise", "endogenous"]
    options = {name: listing[name]["log_probs_options"] for name in names}
    items = [{"prompt": [5], "response": [6, 7, 8]}]
    request = parse(RewardsRequest, {"scorers": names, "items": items, "options": options})
    results = (await engine.score(request)).items[0].scorers
    np.testing.assert_array_equal(results["surprise"].rewards, results["endogenous"].rewards)


def test_what_a_third_partys_scorer_takes_is_listed(make_engine: Callable[..., Any]) -> None:
    theirs = {"type": "theirs:Spreads", "name": "spreads", "options": {"score_from": "judge"}}
    (entry,) = make_engine("causal_lm", [theirs]).describe()
    assert entry["takes"] == ["score"]
    assert entry["log_probs_options"] is None
    assert entry["options"]["score_from"]["default"] == "judge"
