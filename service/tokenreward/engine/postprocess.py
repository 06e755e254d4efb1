"""The last stretch of an item: its scorer's signals, in the caller's units, with credit, as the
reply wants them.

It computes with numpy on one item at a time and knows neither batches nor the device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from tokenreward import credit as credits
from tokenreward.alignment import last_of_units, sum_over_units
from tokenreward.contract import Needs, Options, Outputs, Scorer, Signals, Steps
from tokenreward.engine.preprocess import Prepared
from tokenreward.errors import ItemError, NonFinite, ScorerFailed, frames
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import Credit, CreditName, encode_rewards

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a request asks of one scorer, checked: its options and its credit."""

    name: str
    scorer: Scorer
    options: Options
    credit: Credit
    credit_name: CreditName

    @property
    def needs(self) -> Needs:
        """The outputs of the model that this credit can use."""
        reads_values = "values" in credits.NEEDS[self.credit_name]
        ask = self.scorer.needs if reads_values else self.scorer.needs_without_values
        return ask(self.options)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One scorer's numbers for one item, in the caller's units. `steps`: their scores [k] and each
    unit's step [u], for a scorer that gives them."""

    rewards: Float32[np.ndarray, " u"]
    score: float | None
    steps: tuple[Float32[np.ndarray, " k"], Int64[np.ndarray, " u"]] | None = None


def judge(plan: Plan, prepared: Prepared, outputs: Sequence[Outputs]) -> Judged:
    """What a scorer says of one item, with credit. Raises ItemError: whatever goes wrong on the way
    is the fault of what the scorer gave, and so its item's, not its neighbours'."""
    try:
        return _judged(plan, prepared, outputs)
    except ItemError:
        raise
    except Exception as error:
        raise scorer_failed(plan.name, error) from None


def _judged(plan: Plan, prepared: Prepared, outputs: Sequence[Outputs]) -> Judged:
    with np.errstate(
        over="ignore", divide="ignore", invalid="ignore"
    ):  # inf and nan have an error of their own, below
        signals = plan.scorer.score(prepared.sample, outputs, plan.options)
        _check(plan, signals, num_tokens=len(prepared.owner))
        units = in_units(signals, prepared)
    rewards, score = credits.assign(units, plan.credit, name=plan.credit_name)
    rewards = credits.penalise(
        rewards,
        plan.credit,
        prepared.scored,
        prepared.item.policy_logprobs,
        prepared.item.ref_logprobs,
    )
    shown = signals.steps.scores if signals.steps is not None else np.zeros(0)
    if not all(
        np.isfinite(numbers).all() for numbers in (rewards, shown, 0.0 if score is None else score)
    ):
        raise NonFinite(f"scorer `{plan.name}` gave a number that is not finite")
    return Judged(
        rewards,
        score,
        None if signals.steps is None else (shown, _unit_steps(signals.steps, prepared)),
    )


def scorer_failed(name: str, error: Exception) -> ScorerFailed:
    """The item's error for a scorer that raised; where it raised goes to the log."""
    logger.error("scorer `%s` failed: %s", name, frames(error))
    return ScorerFailed(f"scorer `{name}` failed on this item: {type(error).__name__}")


def _check(plan: Plan, signals: Signals, *, num_tokens: int) -> None:
    """A missing signal or a vector of another length is a scorer's fault, not something to make up
    or stretch."""
    if not isinstance(signals, Signals):
        raise ScorerFailed(f"scorer `{plan.name}` gave {type(signals).__name__}, not Signals")
    for field in sorted(credits.NEEDS[plan.credit_name]):
        if getattr(signals, field) is None:
            raise ScorerFailed(
                f"scorer `{plan.name}` gave no {field}, which credit `{plan.credit_name}` is made "
                "of"
            )
    for field in ("values", "weights"):
        given = getattr(signals, field)
        if given is not None and given.shape != (num_tokens,):
            raise ScorerFailed(
                f"scorer `{plan.name}` gave {field} {list(given.shape)} for {num_tokens} tokens"
            )
    steps = signals.steps
    if steps is not None:
        ends = np.append(-1, steps.last)
        if (
            steps.scores.shape != steps.last.shape
            or ends[-1] != num_tokens - 1
            or (np.diff(ends) < 1).any()
        ):
            raise ScorerFailed(
                f"scorer `{plan.name}` gave steps that do not divide {num_tokens} tokens"
            )


def in_units(signals: Signals, prepared: Prepared) -> credits.UnitSignals:
    """Token signals as unit signals: increments and weights add up, of levels the last token
    stands."""
    num_units = len(prepared.scored)
    into = sum_over_units if signals.kind == "increments" else last_of_units
    return credits.UnitSignals(
        keep=prepared.scored,
        score=None
        if signals.score is None
        else float(signals.score),  # a library's own number goes into no reply
        values=None if signals.values is None else into(signals.values, prepared.owner, num_units),
        weights=None
        if signals.weights is None
        else sum_over_units(signals.weights, prepared.owner, num_units),
    )


def _unit_steps(steps: Steps, prepared: Prepared) -> Int64[np.ndarray, " u"]:
    """The step of each unit's last token; of a unit without tokens, the step of the token before
    it."""
    unit_steps = np.zeros(len(prepared.scored), dtype=np.int64)
    unit_steps[prepared.owner] = np.searchsorted(steps.last, np.arange(len(prepared.owner)))
    return np.maximum.accumulate(unit_steps)


def result(judged: Judged, *, encoding: str) -> dict[str, Any]:
    """One scorer's result for one item. Steps are there only if the scorer gives them."""
    encoded = encode_rewards(judged.rewards) if encoding == "base64" else judged.rewards
    steps = {}
    if judged.steps is not None:
        steps = {
            name: array.tolist()
            for name, array in zip(("step_scores", "step_ids"), judged.steps, strict=True)
        }
    return {"rewards": encoded, "score": judged.score, "error": None, **steps}


def failed(error: ItemError) -> dict[str, Any]:
    """The same for an item that failed."""
    return {"rewards": None, "score": None, "error": error.detail()}


def shown_tokens(prepared: Prepared, vocabulary: Tokenizer) -> list[dict[str, Any]]:
    """The tokens that were scored. Those of a text show its characters; an appended one has an
    empty span."""
    ids = prepared.sample.response_ids
    text = prepared.item.response
    if not isinstance(text, str) or prepared.ends is None:
        texts = vocabulary.texts(ids)
        return [{"id": int(i), "text": t, "span": None} for i, t in zip(ids, texts, strict=True)]
    behind = [len(text)] * (len(ids) - len(prepared.ends))
    inside = prepared.ends.tolist()
    starts, ends = [*([0, *inside][: len(inside)]), *behind], inside + behind
    shown = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    shown[len(prepared.ends) :] = vocabulary.texts(ids[len(prepared.ends) :])
    return [
        {"id": int(token_id), "text": piece, "span": [start, end]}
        for token_id, piece, start, end in zip(ids, shown, starts, ends, strict=True)
    ]
