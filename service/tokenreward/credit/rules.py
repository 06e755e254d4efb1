"""The rules that make a reward per unit of one score, and the affine map in front of them.

T is the number of unmasked units; masked units get 0 and do not count.

    last        r_t = score * [t = T-1]
    uniform     r_t = score / T
    attention   r_t = beta * score * w_t + [t = T-1] * (1 - beta) * score
    discount    G_t = score * gamma^(T-1-t)

The fifth rule, `values`, takes a scorer's own values as they are and needs no function. Everything
is float64. This module does not know which scorer gave the score.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Float64

from tokenreward.wire import Credit

Number = TypeVar("Number", np.float64, np.ndarray)

BETA = 0.8  # of `attention`: the paper's, in all its main runs


def affine(value: Number, credit: Credit) -> Number:
    """x -> clip(scale * x + shift).

    Running statistics are not offered: replicas would disagree. OpenRLHF's `normalize_reward` is
    this map with scale 1/std and shift -mean/std; DeepSpeed-Chat clips the score to +-5.

    Args:
        value: A score, or values [u].
        credit: Its `scale`, `shift` and `clip`. Without a `clip` nothing is limited.
    """
    moved = value * credit.scale + credit.shift
    if credit.clip is None:
        return moved
    return np.clip(moved, credit.clip[0], credit.clip[1])


def last(score: float, keep: Bool[np.ndarray, " u"]) -> Float64[np.ndarray, " u"]:
    """The score on the last unmasked unit: the plain RLHF reward (Ziegler et al. 2019, 1909.08593).

    The rewards sum to the score.
    """
    rewards = np.zeros(len(keep))
    rewards[np.flatnonzero(keep)[-1]] = score
    return rewards


def uniform(score: float, keep: Bool[np.ndarray, " u"]) -> Float64[np.ndarray, " u"]:
    """The same share for every unmasked unit: the uniform baseline of ABC (2402.00782).

    The rewards sum to the score.
    """
    return np.where(keep, score / keep.sum(), 0.0)


def attention(
    score: float, weights: Float32[np.ndarray, " u"], keep: Bool[np.ndarray, " u"], *, beta: float
) -> Float64[np.ndarray, " u"]:
    """The score spread by attention weights: ABC (Chan et al. 2024, "Dense Reward for Free in
    Reinforcement Learning from Human Feedback", 2402.00782).

    Args:
        score: The score to spread.
        weights: At least 0, and 0 where a unit is masked. If they sum to 1, the rewards sum to the
            score for every beta.
        keep: False for masked units.
        beta: The share that the weights spread. The last unmasked unit gets the rest.
    """
    rewards = beta * score * weights.astype(np.float64)
    rewards[np.flatnonzero(keep)[-1]] += (1.0 - beta) * score
    return rewards


def discount(
    score: float, keep: Bool[np.ndarray, " u"], *, gamma: float
) -> Float64[np.ndarray, " u"]:
    """The score discounted backwards from the end; the last unmasked unit's entry is the score.

    These are *returns*, not shaped rewards: a trainer that sums them again counts the score many
    times.
    """
    rewards = np.zeros(len(keep))
    num_kept = int(keep.sum())
    rewards[keep] = score * gamma ** np.arange(num_kept - 1, -1, -1, dtype=np.float64)
    return rewards
