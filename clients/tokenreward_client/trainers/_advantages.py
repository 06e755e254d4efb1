"""Per-token rewards of groups of completions as per-token advantages, in numpy float64.

With r_it the reward and m_it the mask (0 or 1) of token t of completion i, the return is

    G_it = m_it r_it + gamma^m_it G_i(t+1)          (a masked token costs no discount)

and the advantage m_it (G_it - b), where b is taken over the completions j of i's group:

    position   b_t = sum_j m_jt G_jt / sum_j m_jt    (those that are still being written at t)
    sequence   b   = mean_j G_j0                     (G_j0: the return of the whole completion)
    token      b   = 0; r_it - mean_j (sum_u m_ju r_ju / T_j) takes the place of r_it in G, with
               T_j = sum_u m_ju, as PRIME has it (2502.01456), but i is one of the j
    none       b   = 0

With the score on the last token, gamma 1, `sequence` and no scale, this is the advantage of GRPO
(2402.03300) without its division, at every token. Rewards that are all of one sign
(log-probabilities) pay for length, or against it, under `sequence` and `none`; under `token` the
group's mean reward per token is worth nothing.

`scale` divides by s + 1e-4, s the root mean square of the advantages of all unmasked tokens of the
batch, or of the group. At last `centre` takes its mean from each completion: A_it - sum_u m_iu A_iu
/ T_i. The advantages of a completion then sum to 0: they say which of its tokens earned more, and
leave to another signal how good it is as a whole.

A completion without rewards counts in no mean and has advantage 0; so has, unless the baseline is
`none`, a completion that is the only one of its group with rewards.

It knows no trainer and no HTTP.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Baseline = Literal["position", "sequence", "token", "none"]
Scale = Literal["batch", "group", "none"]

# Added to what advantages are divided by, as TRL does.
EPSILON = 1e-4


def dense_advantages(
    rewards: Any,
    mask: Any,
    *,
    num_generations: int,
    gamma: float = 1.0,
    baseline: Baseline = "position",
    scale: Scale = "batch",
    centre: bool = False,
) -> Floats:
    """The advantage of each token, by the formulas above.

    Args:
        rewards: Floats [B, T], padded with anything. A row with a NaN under its mask has no
            rewards.
        mask: 0 or 1 [B, T]: 1 for the tokens that the policy wrote.
        num_generations: The size of a group: consecutive rows.
        gamma: The discount, in [0, 1]. With 0 a token answers for its own reward alone.
        baseline: What is taken from the returns.
        scale: Over which tokens advantages are scaled.
        centre: Whether the mean of each completion's advantages is taken from them.

    Returns:
        Float64 [B, T], 0 where the mask is 0.

    Raises:
        ValueError: An argument is out of range, or groups are not whole.
    """
    check_form(gamma=gamma, baseline=baseline, scale=scale)
    r, w = _groups(rewards, mask, num_generations)
    if baseline == "token":
        r = np.where(w, r - _mean_of_rows(_mean(r, w, axis=2), w), 0.0)
    returns = _returns(r, w, gamma)
    advantages = returns
    if baseline == "position":
        advantages = returns - _mean(returns, w, axis=1)
    if baseline == "sequence":
        advantages = returns - _mean_of_rows(returns[:, :, :1], w)
    if baseline != "none":
        w = w & (w.any(axis=2, keepdims=True).sum(axis=1, keepdims=True) > 1)
    advantages = np.where(w, advantages, 0.0)
    if scale != "none":
        axes = (1, 2) if scale == "group" else (0, 1, 2)
        advantages = advantages / (np.sqrt(_mean(advantages**2, w, axis=axes)) + EPSILON)
    if centre:
        advantages = np.where(w, advantages - _mean(advantages, w, axis=2), 0.0)
    return advantages.reshape(np.shape(mask))


def _groups(rewards: Any, mask: Any, num_generations: int) -> tuple[Floats, Flags]:
    """Rewards, and what counts of them, by group: both [B / num_generations, num_generations, T].
    Raises ValueError."""
    r, w = np.asarray(rewards, dtype=np.float64), np.asarray(mask) != 0
    if r.ndim != 2 or r.shape != w.shape:
        raise ValueError(f"rewards and mask must both be [B, T], got {r.shape} and {w.shape}")
    if len(r) % num_generations:
        raise ValueError(f"{len(r)} completions are no whole groups of {num_generations}")
    w = w & ~(np.isnan(r) & w).any(axis=1, keepdims=True)
    shape = (len(r) // num_generations, num_generations, r.shape[1])
    return np.where(w, r, 0.0).reshape(shape), w.reshape(shape)


def check_form(
    *,
    gamma: float = 1.0,
    baseline: Baseline = "position",
    scale: Scale = "batch",
    centre: bool = False,
) -> None:
    """Check the arguments that say how advantages are made. Raises ValueError."""
    if not (math.isfinite(gamma) and 0.0 <= gamma <= 1.0):
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be one of {get_args(Baseline)}, got {baseline!r}")
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {get_args(Scale)}, got {scale!r}")


def _returns(r: Floats, w: Flags, gamma: float) -> Floats:
    """G [..., T] of masked rewards [..., T]."""
    returns = np.zeros_like(r)
    later = np.zeros(r.shape[:-1])
    for t in range(r.shape[-1] - 1, -1, -1):
        later = r[..., t] + np.where(w[..., t], gamma, 1.0) * later
        returns[..., t] = later
    return returns


def _mean(values: Floats, w: Flags, axis: int | tuple[int, ...]) -> Floats:
    """The mean over the unmasked entries along an axis, which stays; 0 where there are none."""
    total = np.where(w, values, 0.0).sum(axis=axis, keepdims=True)
    mean: Floats = total / np.maximum(w.sum(axis=axis, keepdims=True), 1)
    return mean


def _mean_of_rows(values: Floats, w: Flags) -> Floats:
    """The mean [G, 1, 1] of one value per completion, over the completions with rewards."""
    has_rewards: Flags = np.any(w, axis=2, keepdims=True)
    return _mean(values, has_rewards, axis=1)
