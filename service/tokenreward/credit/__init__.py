"""Credit: how a scorer's signals become one reward per unit of the caller. One rule per file.

Order, and no other: affine and clip on the score (on each value for `values`), the rule, the KL
penalty. Everything is computed in float64 and leaves as float32; what does not fit leaves as inf or
nan, which the engine answers with `non_finite`. It knows units and nothing of tokens, models or
HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from tokenreward.contract import Gives
from tokenreward.credit import affine, attention, discount, kl, last, uniform
from tokenreward.errors import CreditNotSupported, InvalidField, LengthMismatch
from tokenreward.wire import Credit, CreditName, Numbers

NEEDS: dict[CreditName, frozenset[Gives]] = {
    "values": frozenset({"values"}),
    "last": frozenset({"score"}),
    "uniform": frozenset({"score"}),
    "attention": frozenset({"score", "weights"}),
    "discount": frozenset({"score"}),
}
_ONLY_WITH = {"beta": "attention", "gamma": "discount"}


@dataclass(frozen=True, slots=True, eq=False)
class UnitSignals:
    """A scorer's signals in the caller's units; `keep` is False for units that are masked."""

    keep: Bool[np.ndarray, " u"]
    score: float | None = None
    values: Float32[np.ndarray, " u"] | None = None
    weights: Float32[np.ndarray, " u"] | None = None


def check(
    credit: Credit, *, default: CreditName, gives: frozenset[Gives], param: str = "credit"
) -> CreditName:
    """The rule that a request asks for. Raises CreditNotSupported (the scorer lacks its inputs),
    InvalidField (a parameter of another rule)."""
    name = credit.name if credit.name is not None else default
    missing = NEEDS[name] - gives
    if missing:
        raise CreditNotSupported(
            f"credit `{name}` needs {' and '.join(sorted(missing))}, this scorer gives "
            f"{' and '.join(sorted(gives))}",
            param=f"{param}.name",
        )
    for parameter, owner in _ONLY_WITH.items():
        if getattr(credit, parameter) is not None and name != owner:
            raise InvalidField(
                f"`{parameter}` belongs to credit `{owner}`, not `{name}`",
                param=f"{param}.{parameter}",
            )
    return name


def assign(
    signals: UnitSignals, credit: Credit, *, name: CreditName
) -> tuple[Float32[np.ndarray, " u"], float | None]:
    """Rewards [units] and the score they stand for, before any KL penalty. Masked units get exactly
    0."""
    with np.errstate(over="ignore", invalid="ignore"):
        rewards, score = _spread(signals, credit, name)
        return np.where(signals.keep, rewards, 0.0).astype(np.float32), score


def _spread(
    signals: UnitSignals, credit: Credit, name: CreditName
) -> tuple[np.ndarray, float | None]:
    score = signals.score
    if name == "values":
        assert signals.values is not None
        return affine.apply(signals.values.astype(np.float64), credit), score
    assert score is not None
    score = float(affine.apply(np.float64(score), credit))
    return _rule(name, score, signals, credit), score


def _rule(name: CreditName, score: float, signals: UnitSignals, credit: Credit) -> np.ndarray:
    if name == "attention":
        assert signals.weights is not None
        beta = attention.BETA if credit.beta is None else credit.beta
        return attention.spread(score, signals.weights, signals.keep, beta=beta)
    if name == "discount":
        return discount.spread(
            score, signals.keep, gamma=1.0 if credit.gamma is None else credit.gamma
        )
    return {"last": last.spread, "uniform": uniform.spread}[name](score, signals.keep)


def penalise(
    rewards: Float32[np.ndarray, " u"],
    credit: Credit,
    keep: Bool[np.ndarray, " u"],
    policy_logprobs: Numbers | None,
    ref_logprobs: Numbers | None,
) -> Float32[np.ndarray, " u"]:
    """Rewards less `credit.kl`, if it is asked for. Raises as `check_logprobs`."""
    check_logprobs(credit, len(rewards), policy_logprobs, ref_logprobs)
    if credit.kl is None:
        return rewards
    policy, reference = (
        np.asarray(logprobs, dtype=np.float64) for logprobs in (policy_logprobs, ref_logprobs)
    )
    with np.errstate(over="ignore", invalid="ignore"):
        penalty = credit.kl.coef * kl.estimate(
            policy - reference, credit.kl.estimator, credit.kl.clamp
        )
        return np.where(keep, rewards - penalty, rewards).astype(np.float32)


def check_logprobs(
    credit: Credit,
    num_units: int,
    policy_logprobs: Numbers | None,
    ref_logprobs: Numbers | None,
) -> None:
    """Raises LengthMismatch if `credit.kl` is asked for and log-probs are missing or not one per
    unit."""
    for field, logprobs in (("policy_logprobs", policy_logprobs), ("ref_logprobs", ref_logprobs)):
        given = 0 if logprobs is None else len(logprobs)
        if credit.kl is not None and given != num_units:
            raise LengthMismatch(f"`credit.kl` needs {num_units} entries, got {given}", param=field)
