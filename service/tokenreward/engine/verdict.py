"""The last stretch of an item: its scorer's signals, in the caller's units, with credit, as the reply wants them.

It computes with numpy on one item at a time and knows neither batches nor the device.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from tokenreward import credit as credits
from tokenreward.alignment import last_of_units, sum_over_units
from tokenreward.contract import Options, Outputs, Scorer, Signals
from tokenreward.engine.intake import Prepared
from tokenreward.errors import ItemError, NonFinite, RewardError, ScorerFailed, frames
from tokenreward.models.vocabulary import Vocabulary
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


def judge(plan: Plan, prepared: Prepared, outputs: Sequence[Outputs]) -> tuple[Float32[np.ndarray, " u"], float | None]:
    """Rewards [units] and score of one item. Raises ItemError."""
    try:
        signals = plan.scorer.score(prepared.sample, outputs, plan.options)
    except RewardError:
        raise
    except Exception as error:  # a scorer's fault is its item's, not its neighbours'
        raise scorer_failed(plan.name, error) from None
    _check_shapes(plan, signals, num_tokens=len(prepared.owner))
    rewards, score = credits.assign(in_units(signals, prepared), plan.credit, name=plan.credit_name)
    rewards = credits.penalise(
        rewards,
        plan.credit,
        prepared.scored,
        prepared.item.policy_logprobs,
        prepared.item.ref_logprobs,
        param=prepared.param,
    )
    if not np.isfinite(rewards).all() or (score is not None and not np.isfinite(score)):
        raise NonFinite(f"scorer `{plan.name}` gave a number that is not finite", param=prepared.param)
    return rewards, score


def scorer_failed(name: str, error: Exception) -> ScorerFailed:
    """The item's error for a scorer that raised; where it raised goes to the log."""
    logger.error("scorer `%s` failed: %s", name, frames(error))
    return ScorerFailed(f"scorer `{name}` failed on this item: {type(error).__name__}")


def _check_shapes(plan: Plan, signals: Signals, *, num_tokens: int) -> None:
    """A vector of another length is a scorer's fault, not something to stretch."""
    for field in ("values", "weights"):
        given = getattr(signals, field)
        if given is not None and given.shape != (num_tokens,):
            raise ScorerFailed(f"scorer `{plan.name}` gave {field} {list(given.shape)} for {num_tokens} tokens")


def in_units(signals: Signals, prepared: Prepared) -> credits.UnitSignals:
    """Token signals as unit signals: increments and weights add up, of levels the last token stands."""
    num_units = len(prepared.scored)
    into = sum_over_units if signals.kind == "increments" else last_of_units
    return credits.UnitSignals(
        keep=prepared.scored,
        score=signals.score,
        values=None if signals.values is None else into(signals.values, prepared.owner, num_units),
        weights=None if signals.weights is None else sum_over_units(signals.weights, prepared.owner, num_units),
    )


def result(rewards: Float32[np.ndarray, " u"], score: float | None, *, encoding: str) -> dict[str, Any]:
    """One scorer's result for one item."""
    encoded = encode_rewards(rewards) if encoding == "base64" else rewards
    return {"rewards": encoded, "score": score, "error": None}


def failed(error: ItemError) -> dict[str, Any]:
    """The same for an item that failed."""
    return {"rewards": None, "score": None, "error": error.detail()}


def shown_tokens(prepared: Prepared, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The tokens that were scored. Those of a text show its characters; an appended one has an empty span."""
    ids = prepared.sample.response_ids
    text = prepared.item.response
    if not isinstance(text, str) or prepared.ends is None:
        texts = vocabulary.texts(ids)
        return [{"id": int(i), "text": t, "span": None} for i, t in zip(ids, texts, strict=True)]
    ends = np.concatenate([prepared.ends, np.full(len(ids) - len(prepared.ends), len(text))]).astype(int).tolist()
    starts = [0, *ends[:-1]]
    shown = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    shown[len(prepared.ends) :] = vocabulary.texts(ids[len(prepared.ends) :])
    return [
        {"id": int(token_id), "text": piece, "span": [start, end]}
        for token_id, piece, start, end in zip(ids, shown, starts, ends, strict=True)
    ]
