"""Credit `last`: the score on the last unmasked unit, the plain RLHF reward (Ziegler et al. 2019,
1909.08593)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64


def spread(score: float, keep: Bool[np.ndarray, " u"]) -> Float64[np.ndarray, " u"]:
    """r_t = score * [t = last unmasked unit]. The rewards sum to the score."""
    rewards = np.zeros(len(keep))
    rewards[np.flatnonzero(keep)[-1]] = score
    return rewards
