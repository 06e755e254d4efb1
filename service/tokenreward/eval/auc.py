"""The area under the ROC curve: how often a positive case has the higher score, a tie counting
half.

It knows labels and scores. Where cases come in clusters (the tokens of one response), a pooled area
gets the interval of a bootstrap over clusters: tokens of one response are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenreward.eval.figure import PERCENTILES, Figure, Floats

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

NUM_RESAMPLES = 500
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The ROC curve: false and true positive rates [k] at every threshold, from (0, 0) to (1,
    1)."""

    false_rates: Floats
    true_rates: Floats


def roc_auc(labels: Bools, scores: Floats) -> float | None:
    """The share of (positive, negative) couples [labels, scores: n] in the right order; None if a
    kind is missing."""
    positives, negatives = scores[labels], np.sort(scores[~labels])
    if not len(positives) or not len(negatives):
        return None
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def roc_curve(labels: Bools, scores: Floats) -> Curve | None:
    """None if there is no positive or no negative case."""
    if labels.all() or not labels.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order])[ends]
    false_alarms = ends + 1 - hits
    rates = [np.concatenate([[0.0], counts / counts[-1]]) for counts in (false_alarms, hits)]
    return Curve(rates[0], rates[1])


def pooled_auc(labels: Bools, scores: Floats, clusters: Ints) -> Figure | None:
    """The area over all cases [n], and its interval; `clusters` [n] says which cases belong
    together, from 0."""
    value = roc_auc(labels, scores)
    if value is None:
        return None
    num_clusters = int(clusters.max()) + 1
    weighted = _Weighted(labels, scores, clusters)
    rng = np.random.default_rng(_SEED)
    draws = (rng.integers(0, num_clusters, size=num_clusters) for _ in range(NUM_RESAMPLES))
    areas = [weighted.area(np.bincount(draw, minlength=num_clusters)) for draw in draws]
    known = [area for area in areas if area is not None]
    low, high = np.percentile(known or [value], PERCENTILES)
    return Figure(value, float(low), float(high), len(labels), "bootstrap")


class _Weighted:
    """Cases in order of their score, once, so that each resample is a few sums."""

    def __init__(self, labels: Bools, scores: Floats, clusters: Ints) -> None:
        order = np.argsort(scores, kind="stable")
        self._labels, self._clusters = labels[order], clusters[order]
        self._starts = np.concatenate([[0], np.flatnonzero(np.diff(scores[order])) + 1])

    def area(self, times: Ints) -> float | None:
        """The area if cluster c is there `times[c]` times; None if a kind of case is missing
        then."""
        weights = times[self._clusters]
        # Sums over equal scores: a tie counts half.
        positive = np.add.reduceat(np.where(self._labels, weights, 0), self._starts)
        negative = np.add.reduceat(np.where(self._labels, 0, weights), self._starts)
        num_couples = int(positive.sum()) * int(negative.sum())
        if num_couples == 0:
            return None
        below = np.cumsum(negative) - negative
        return float((positive * (2 * below + negative)).sum() / (2 * num_couples))
