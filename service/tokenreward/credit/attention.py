"""Credit `attention`: the score spread by attention weights, ABC (Chan et al. 2024, "Dense Reward
for Free in Reinforcement Learning from Human Feedback", 2402.00782)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64

BETA = 0.8  # the paper's, in all its main runs


def spread(
    score: float, weights: Float32[np.ndarray, " u"], keep: Bool[np.ndarray, " u"], *, beta: float
) -> Float64[np.ndarray, " u"]:
    """r_t = beta * score * w_t + [t = last unmasked unit] * (1 - beta) * score.

    With weights that sum to 1 the rewards sum to the score for every beta.
    """
    rewards = beta * score * weights.astype(np.float64)
    rewards[np.flatnonzero(keep)[-1]] += (1.0 - beta) * score
    return rewards
