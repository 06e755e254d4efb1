"""A number with its 95 % interval: of a share, of a mean, of a mean of shares. It knows no data and
no scorers.

Shares of independent cases get Wilson's score interval (Wilson 1927), which is honest at 0 and 1.
Means get the percentiles of a bootstrap over cases. A mean of shares gets MOVER (Zou and Donner
2008), which puts the intervals of its parts together. No cases, no figure: None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Method = Literal["wilson", "bootstrap", "mover"]

NUM_RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)
_Z = 1.959963984540054
_SEED = 0
_BLOCK = 2_000_000  # draws in memory at a time


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, the ends of its 95 % interval, over how many cases, and how the interval was
    made."""

    value: float
    low: float
    high: float
    num: int
    method: Method


def share(total: float, num: int) -> Figure | None:
    """`total` of `num` cases. A case may count in part (the mean of values in [0, 1]): the interval
    is then wide, never narrow, because no such values vary more than zeros and ones of the same
    mean."""
    if num == 0:
        return None
    value = total / num
    middle = (value + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z * math.sqrt(value * (1 - value) / num + _Z**2 / (4 * num**2)) / (1 + _Z**2 / num)
    return Figure(
        value,
        max(0.0, min(value, middle - half)),
        min(1.0, max(value, middle + half)),
        num,
        "wilson",
    )


def mean(values: npt.ArrayLike) -> Figure | None:
    """The mean of values [n], one per case."""
    return mean_of_means([np.asarray(values, dtype=np.float64)])


def mean_of_means(strata: Sequence[Floats]) -> Figure | None:
    """The unweighted mean of the means of strata; cases are resampled within their stratum. None if
    one is empty."""
    if not strata or any(len(values) == 0 for values in strata):
        return None
    rng = np.random.default_rng(_SEED)
    resampled = np.mean([_resampled_means(values, rng) for values in strata], axis=0)
    low, high = np.percentile(resampled, PERCENTILES)
    value = float(np.mean([values.mean() for values in strata]))
    return Figure(value, float(low), float(high), sum(map(len, strata)), "bootstrap")


def mean_of_shares(parts: Sequence[Figure | None]) -> Figure | None:
    """The unweighted mean of independent shares. None if there is none, or if one of them has no
    cases."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    value = float(np.mean([part.value for part in known]))
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in known)) / len(known)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in known)) / len(known)
    return Figure(value, value - below, value + above, sum(part.num for part in known), "mover")


def _resampled_means(values: Floats, rng: np.random.Generator) -> Floats:
    """Means [NUM_RESAMPLES] of as many draws with replacement."""
    num = len(values)
    block = max(1, _BLOCK // num)
    sizes = [min(block, NUM_RESAMPLES - first) for first in range(0, NUM_RESAMPLES, block)]
    return np.concatenate(
        [values[rng.integers(0, num, size=(size, num))].mean(axis=1) for size in sizes]
    )
