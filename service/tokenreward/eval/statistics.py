"""Numbers with their 95 % intervals: shares, means, areas under ROC curves; and seconds per item.

Shares of independent cases get Wilson's score interval (Wilson 1927), which is honest at 0 and 1.
Means get the percentiles of a bootstrap over cases. A mean of shares gets MOVER (Zou and Donner
2008), which puts the intervals of its parts together. The area under the ROC curve says how often a
positive case has the higher score, where a tie counts half. Cases may come in clusters (the tokens
of one response), and tokens of one response are not independent: the interval of a pooled area is
the bootstrap over clusters. Without cases there is no estimate: None, never NaN.

It knows no data and no scorers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Method = Literal["wilson", "bootstrap", "mover"]
Timing = tuple[float, float, int, int]
"""How long the request took that an answer came with: `(seconds, since_last_s, num_items,
concurrency)`.

`seconds` runs from sending the request to its whole reply, measured in this process. `since_last_s`
is the part of it since the reply before: over all requests it adds up to the time of the run.
`num_items` is the number of items in the request, `concurrency` is how many requests were in flight
at most."""

NUM_RESAMPLES = 2000
NUM_AREA_RESAMPLES = 500
PERCENTILES = (2.5, 97.5)
_Z = 1.959963984540054  # of the standard normal distribution, 97.5 % lies below
_SEED = 0
_BLOCK = 2_000_000  # draws in memory at a time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval.

    `low` and `high` are the ends of the interval, `num` is the number of cases, `method` is how the
    interval was made.
    """

    value: float
    low: float
    high: float
    num: int
    method: Method


@dataclass(frozen=True, slots=True)
class Latency:
    """How long answers took, seen from this process.

    `per_item_s` is the wall time of scoring over the items scored, with `concurrencies` requests in
    flight: one over the throughput, for all scorers of a deployment that were asked together. A
    request carries up to 64 items; `request_median_s` and
    `request_p95_s` are the median and the 95th percentile, over items, of the seconds of the
    item's request: network, waiting for the device, the other requests in flight and the client's
    retries included. A scorer's first item, which is sent alone before, is not timed.
    `concurrencies` holds more than one number if a run was resumed with another concurrency.
    """

    per_item_s: float
    request_median_s: float
    request_p95_s: float
    num_items: int
    concurrencies: tuple[int, ...]


def share(total: float, num: int) -> Estimate | None:
    """The share `total / num` with Wilson's score interval.

    Args:
        total: Cases that count. A case may count in part (the mean of values in [0, 1]): the
            interval is then wide, never narrow, because values in [0, 1] vary at most as much as
            zeros and ones of the same mean.
        num: Cases in all; None is returned for 0.
    """
    if num == 0:
        return None
    value = total / num
    middle = (value + _Z**2 / (2 * num)) / (1 + _Z**2 / num)
    half = _Z * math.sqrt(value * (1 - value) / num + _Z**2 / (4 * num**2)) / (1 + _Z**2 / num)
    low, high = max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half))
    return Estimate(value, low, high, num, "wilson")


def mean(values: npt.ArrayLike) -> Estimate | None:
    """The mean of values [n], one per case."""
    return mean_of_means([np.asarray(values, dtype=np.float64)])


def mean_of_means(strata: Sequence[Floats]) -> Estimate | None:
    """The unweighted mean of the means of strata, each [n].

    Cases are resampled within their stratum. Returns None if there is no stratum or one is empty.
    """
    if not strata or any(len(values) == 0 for values in strata):
        return None
    rng = np.random.default_rng(_SEED)
    means = np.mean([_resampled_means(values, rng) for values in strata], axis=0)
    low, high = np.percentile(means, PERCENTILES)
    value = float(np.mean([values.mean() for values in strata]))
    return Estimate(value, float(low), float(high), sum(map(len, strata)), "bootstrap")


def mean_of_shares(shares: Sequence[Estimate | None]) -> Estimate | None:
    """The unweighted mean of independent shares. Returns None if there is no share or one of them
    has no cases."""
    parts = [part for part in shares if part is not None]
    if not parts or len(parts) < len(shares):
        return None
    value = float(np.mean([part.value for part in parts]))
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Estimate(value, value - below, value + above, sum(part.num for part in parts), "mover")


def mean_of_f1s(strata: Sequence[tuple[Bools, Bools]]) -> Estimate | None:
    """The unweighted mean of the F1 of groups: of each, the harmonic mean of two shares.

    Args:
        strata: For each group whether each case counts, of the one kind [n] and of the other [m].

    Returns:
        The estimate, with a bootstrap over the cases of each kind and group; None if there is no
        group, or one kind of a group has no cases.
    """
    if not strata or any(not (len(one) and len(other)) for one, other in strata):
        return None
    rng = np.random.default_rng(_SEED)
    values, draws = [], []
    for pair in strata:
        one, other = (kind.astype(np.float64) for kind in pair)
        values.append(_f1(one.mean(), other.mean()))
        draws.append(_f1(_resampled_means(one, rng), _resampled_means(other, rng)))
    low, high = np.percentile(np.mean(draws, axis=0), PERCENTILES)
    num = sum(len(one) + len(other) for one, other in strata)
    return Estimate(float(np.mean(values)), float(low), float(high), num, "bootstrap")


def _f1(one: npt.ArrayLike, other: npt.ArrayLike) -> Floats:
    """The harmonic mean of shares; 0 where both are 0."""
    total = np.add(one, other)
    f1: Floats = 2 * np.multiply(one, other) / np.where(total > 0, total, 1.0)
    return f1


def _resampled_means(values: Floats, rng: np.random.Generator) -> Floats:
    """Means [NUM_RESAMPLES] of as many draws with replacement as there are values."""
    num = len(values)
    block = max(1, _BLOCK // num)
    means = []
    for first in range(0, NUM_RESAMPLES, block):
        size = min(block, NUM_RESAMPLES - first)
        means.append(values[rng.integers(0, num, size=(size, num))].mean(axis=1))
    return np.concatenate(means)


def roc_auc(labels: Bools, scores: Floats) -> float | None:
    """The area under the ROC curve: the share of (positive, negative) couples in the right order.

    Args:
        labels: Which cases are positive, [n].
        scores: The score of each case, [n].

    Returns:
        The area; None if there is no positive or no negative case.
    """
    positives, negatives = scores[labels], np.sort(scores[~labels])
    if not len(positives) or not len(negatives):
        return None
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float((below + not_above).sum() / (2 * len(positives) * len(negatives)))


def roc_curve(labels: Bools, scores: Floats) -> Floats | None:
    """The ROC curve of cases.

    Args:
        labels: Which cases are positive, [n].
        scores: The score of each case, [n].

    Returns:
        False positive rates and true positive rates at every threshold, [2, k], from (0, 0) to
        (1, 1); None if there is no positive or no negative case.
    """
    if labels.all() or not labels.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order])[ends]
    false_alarms = ends + 1 - hits
    rates = [np.concatenate([[0.0], counts / counts[-1]]) for counts in (false_alarms, hits)]
    return np.stack(rates)


def pooled_auc(labels: Bools, scores: Floats, clusters: Ints) -> Estimate | None:
    """The area under the ROC curve over all cases, with the interval of a bootstrap over clusters.

    Args:
        labels: Which cases are positive, [n].
        scores: The score of each case, [n].
        clusters: The cluster of each case, [n], counted from 0.

    Returns:
        The estimate; None if there is no positive or no negative case.
    """
    value = roc_auc(labels, scores)
    if value is None:
        return None
    num_clusters = int(clusters.max()) + 1
    area_of = weighted_auc(labels, scores, clusters)
    rng = np.random.default_rng(_SEED)
    areas = []
    for _ in range(NUM_AREA_RESAMPLES):
        draw = rng.integers(0, num_clusters, size=num_clusters)
        area = area_of(np.bincount(draw, minlength=num_clusters))
        if area is not None:
            areas.append(area)
    low, high = np.percentile(areas or [value], PERCENTILES)
    return Estimate(value, float(low), float(high), len(labels), "bootstrap")


def weighted_auc(labels: Bools, scores: Floats, clusters: Ints) -> Callable[[Ints], float | None]:
    """A function from how often each cluster counts, [clusters], to the area under the ROC curve.

    The function returns None if all positive or all negative cases count 0 times. Cases are sorted
    by score once, here, so that each of many calls is a few sums.

    Args:
        labels: Which cases are positive, [n].
        scores: The score of each case, [n].
        clusters: The cluster of each case, [n], counted from 0.
    """
    order = np.argsort(scores, kind="stable")
    labels, clusters = labels[order], clusters[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(scores[order])) + 1])

    def area(times: Ints) -> float | None:
        weights = times[clusters]
        # Sums over equal scores: a tie counts half.
        positive = np.add.reduceat(np.where(labels, weights, 0), starts)
        negative = np.add.reduceat(np.where(labels, 0, weights), starts)
        num_couples = int(positive.sum()) * int(negative.sum())
        if num_couples == 0:
            return None
        below = np.cumsum(negative) - negative
        return float((positive * (2 * below + negative)).sum() / (2 * num_couples))

    return area


def latency_of(timings: Sequence[Timing]) -> Latency | None:
    """The latency from the timing of each item; None if there is none."""
    if not timings:
        return None
    seconds, since_last_s, num_items, concurrencies = zip(*timings, strict=True)
    median, p95 = np.percentile(seconds, [50, 95])
    return Latency(
        per_item_s=float(np.mean(np.divide(since_last_s, num_items))),
        request_median_s=float(median),
        request_p95_s=float(p95),
        num_items=len(timings),
        concurrencies=tuple(sorted(set(concurrencies))),
    )
