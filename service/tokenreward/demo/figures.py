"""The statistics that the model card reports: ROC-AUC, means with bootstrap intervals. It does not
know models or rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A mean over responses or pairs with the 2.5 % and 97.5 % points of its bootstrap
    distribution."""

    mean: float
    low: float
    high: float
    count: int


def roc_auc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """The share of (positive, negative) couples that the score puts in the right order; a tie
    counts half."""
    truth, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    positives, negatives = values[truth], values[~truth]
    if len(positives) == 0 or len(negatives) == 0:
        raise ValueError("ROC-AUC needs at least one label of each kind")
    difference = positives[:, None] - negatives[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def figure(values: Sequence[float], seed: int = 0) -> Figure:
    """The mean of some values, resampled with replacement for its interval."""
    data: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(NUM_RESAMPLES, len(data)))
    low, high = np.quantile(data[draws].mean(axis=1), [0.025, 0.975])
    return Figure(float(data.mean()), float(low), float(high), len(data))


def overlaps(token: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether a token's characters and any of the ranges have a character in common."""
    return any(token[0] < last and first < token[1] for first, last in ranges)
