"""Areas: every fast way against the count of couples, one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.eval.auc import _Weighted, pooled_auc, roc_auc, roc_curve

CASES = st.lists(
    st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=40
)


def counted(labels: list[bool], scores: list[float]) -> float | None:
    """The share of couples in the right order, by looking at each."""
    positives = [score for label, score in zip(labels, scores, strict=True) if label]
    negatives = [score for label, score in zip(labels, scores, strict=True) if not label]
    if not positives or not negatives:
        return None
    return sum((p > n) + 0.5 * (p == n) for p, n in itertools.product(positives, negatives)) / (
        len(positives) * len(negatives)
    )


def arrays(cases: list[tuple[bool, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, clusters = zip(*cases, strict=True)
    return np.array(labels), np.array(scores, dtype=float), np.array(clusters)


@given(CASES)
def test_area_is_the_share_of_couples_in_order(cases: list[tuple[bool, int, int]]) -> None:
    labels, scores, _ = arrays(cases)
    expected = counted(labels.tolist(), scores.tolist())
    assert roc_auc(labels, scores) == (
        None if expected is None else pytest.approx(expected, abs=1e-12)
    )


@given(CASES)
def test_area_under_the_curve_is_the_area(cases: list[tuple[bool, int, int]]) -> None:
    labels, scores, _ = arrays(cases)
    curve, area = roc_curve(labels, scores), roc_auc(labels, scores)
    assert (curve is None) == (area is None)
    if curve is not None:
        assert (curve.false_rates[0], curve.true_rates[0]) == (0, 0)
        assert (curve.false_rates[-1], curve.true_rates[-1]) == (1, 1)
        assert np.trapezoid(curve.true_rates, curve.false_rates) == pytest.approx(area, abs=1e-12)


@given(CASES, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weighted_area_is_that_of_repeated_clusters(
    cases: list[tuple[bool, int, int]], times: list[int]
) -> None:
    labels, scores, clusters = arrays(cases)
    repeats = np.array(times)[clusters]
    expected = counted(np.repeat(labels, repeats).tolist(), np.repeat(scores, repeats).tolist())
    area = _Weighted(labels, scores, clusters).area(np.array(times))
    assert area == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_pooled_interval_resamples_clusters_not_cases() -> None:
    """The same case ten times in one cluster tells as much as once: the interval is the same, if
    the draws are."""
    rng = np.random.default_rng(0)
    labels, clusters = rng.random(60) < 0.4, np.arange(60)
    scores = rng.normal(size=60) + labels
    once = pooled_auc(labels, scores, clusters)
    often = pooled_auc(np.repeat(labels, 10), np.repeat(scores, 10), np.repeat(clusters, 10))
    assert once is not None
    assert often is not None
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))
    assert (once.num, often.num) == (60, 600)
    assert once.low < once.value < once.high


def test_one_kind_has_no_area_and_constant_scores_have_a_half() -> None:
    labels = np.array([True, False, True])
    assert pooled_auc(np.ones(3, dtype=bool), np.zeros(3), np.arange(3)) is None
    assert roc_curve(np.zeros(3, dtype=bool), np.zeros(3)) is None
    found = pooled_auc(labels, np.zeros(3), np.zeros(3, dtype=int))
    assert found is not None
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_a_million_cases_take_little_memory_and_no_couples() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(10**6) < 0.5, rng.normal(size=10**6)
    assert roc_auc(labels, scores) == pytest.approx(0.5, abs=0.002)
