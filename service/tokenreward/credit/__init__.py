"""Credit: how a scorer's signals become one reward per unit of the caller.

    signals in units -> affine and clip -> rule -> KL penalty -> rewards

This order never changes. The affine map acts on the score, or with `values` on each value.
Everything is computed in float64 and leaves as float32. A number that does not fit leaves as inf or
nan, and the engine answers it with `non_finite`. Credit knows units, and nothing of tokens, models
or HTTP.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64

from tokenreward.contract import Gives, Signals
from tokenreward.credit import kl, rules
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


def check(
    credit: Credit, *, default: CreditName, gives: frozenset[Gives], param: str = "credit"
) -> CreditName:
    """The rule that a request wants.

    Args:
        credit: What the request says of it.
        default: The rule of a request that names none.
        gives: The signals that the scorer gives.
        param: The path of `credit` in the request, for errors.

    Raises:
        CreditNotSupported: The scorer does not give what the rule is made of.
        InvalidField: A parameter belongs to another rule.
    """
    name = credit.name or default
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
    signals: Signals, keep: Bool[np.ndarray, " u"], credit: Credit, *, name: CreditName
) -> tuple[Float32[np.ndarray, " u"], float | None]:
    """The rewards of one item, before any KL penalty.

    Args:
        signals: What the scorer says, whose values and weights are those of units. The inputs of
            the rule are there.
        keep: False for masked units.
        credit: The parameters of the rule and of the affine map.
        name: The rule.

    Returns:
        Rewards [u], exactly 0 for masked units; and the score that they stand for, after the
        affine map. With `values` the map acts on the values, and the score is the scorer's own.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        score = signals.score
        if name == "values":
            assert signals.values is not None
            rewards = rules.affine(signals.values.astype(np.float64), credit)
        else:
            assert score is not None
            score = float(rules.affine(np.float64(score), credit))
            rewards = _spread(score, signals.weights, keep, credit, name)
        return np.where(keep, rewards, 0.0).astype(np.float32), score


def _spread(
    score: float,
    weights: Float32[np.ndarray, " u"] | None,
    keep: Bool[np.ndarray, " u"],
    credit: Credit,
    name: CreditName,
) -> Float64[np.ndarray, " u"]:
    """The score over the units, by one of the rules that spread a score."""
    if name == "attention":
        assert weights is not None
        beta = rules.BETA if credit.beta is None else credit.beta
        return rules.attention(score, weights, keep, beta=beta)
    if name == "discount":
        gamma = 1.0 if credit.gamma is None else credit.gamma
        return rules.discount(score, keep, gamma=gamma)
    if name == "uniform":
        return rules.uniform(score, keep)
    return rules.last(score, keep)


def penalise(
    rewards: Float32[np.ndarray, " u"],
    credit: Credit,
    keep: Bool[np.ndarray, " u"],
    policy_logprobs: Numbers | None,
    ref_logprobs: Numbers | None,
) -> Float32[np.ndarray, " u"]:
    """Rewards less the KL penalty of `credit.kl`, if there is one: r_t -= coef * k_t.

    k_t is an estimate from d_t = policy_logprobs[t] - ref_logprobs[t] (see `kl.estimate`). Masked
    units are left as they are.

    Raises:
        LengthMismatch: As `check_logprobs`.
    """
    check_logprobs(credit, len(rewards), policy_logprobs, ref_logprobs)
    if credit.kl is None:
        return rewards
    policy = np.asarray(policy_logprobs, dtype=np.float64)
    reference = np.asarray(ref_logprobs, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        estimates = kl.estimate(policy - reference, credit.kl.estimator, credit.kl.clamp)
        penalised = rewards - credit.kl.coef * estimates
        return np.where(keep, penalised, rewards).astype(np.float32)


def check_logprobs(
    credit: Credit,
    num_units: int,
    policy_logprobs: Numbers | None,
    ref_logprobs: Numbers | None,
) -> None:
    """Refuses a KL penalty whose log-probs are missing.

    Raises:
        LengthMismatch: `credit.kl` is there, and log-probs are not one per unit.
    """
    if credit.kl is None:
        return
    for field, logprobs in (("policy_logprobs", policy_logprobs), ("ref_logprobs", ref_logprobs)):
        num_entries = 0 if logprobs is None else len(logprobs)
        if num_entries != num_units:
            raise LengthMismatch(
                f"`credit.kl` needs {num_units} entries, got {num_entries}", param=field
            )
