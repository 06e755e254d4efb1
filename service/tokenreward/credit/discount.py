"""Credit `discount`: the score discounted backwards from the end. These are *returns*, not shaped
rewards: a trainer that sums rewards again would count the score many times."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64


def spread(
    score: float, keep: Bool[np.ndarray, " u"], *, gamma: float
) -> Float64[np.ndarray, " u"]:
    """G_t = score * gamma^(T-1-t) over the T unmasked units: the last one's entry is the score."""
    rewards = np.zeros(len(keep))
    num_kept = int(keep.sum())
    rewards[keep] = score * gamma ** np.arange(num_kept - 1, -1, -1, dtype=np.float64)
    return rewards
