"""Credit `uniform`: every unmasked unit gets the same share (the uniform baseline of ABC,
2402.00782)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64


def spread(score: float, keep: Bool[np.ndarray, " u"]) -> Float64[np.ndarray, " u"]:
    """r_t = score / T over the T unmasked units. The rewards sum to the score."""
    return np.where(keep, score / keep.sum(), 0.0)
