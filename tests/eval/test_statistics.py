"""Estimates: Wilson by its formula, the bootstrap by the normal law, MOVER by hand; areas against
the count of couples, one by one. No cases are no estimate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.eval_data import share_in_order
from tokenreward.eval.statistics import (
    Estimate,
    mean,
    mean_of_means,
    mean_of_shares,
    pooled_auc,
    roc_auc,
    roc_curve,
    share,
    weighted_auc,
)

Z = 1.959963984540054
CASES = st.lists(
    st.tuples(st.booleans(), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=40
)


def roots(right: int, num: int) -> tuple[float, float]:
    """Where |p - right/num| = z sqrt(p (1 - p) / num): Wilson's ends, as the roots of the
    quadratic."""
    value = right / num
    a, b, c = 1 + Z**2 / num, -(2 * value + Z**2 / num), value**2
    spread = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return (-b - spread) / (2 * a), (-b + spread) / (2 * a)


@given(st.integers(1, 3000).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_share_has_wilsons_interval(case: tuple[int, int]) -> None:
    estimate = share(*case)
    assert estimate is not None
    assert estimate.value == case[0] / case[1]
    assert (estimate.low, estimate.high) == pytest.approx(roots(*case), abs=1e-7)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_share_that_is_1_is_not_certain() -> None:
    estimate = share(1000, 1000)
    assert estimate is not None
    assert estimate.high == 1.0
    assert estimate.low == pytest.approx(1000 / (1000 + Z**2))


def test_no_cases_are_no_figure() -> None:
    assert share(0, 0) is None
    assert mean([]) is None
    assert mean_of_means([]) is None
    assert mean_of_means([np.ones(3), np.empty(0)]) is None
    assert mean_of_shares([]) is None
    assert mean_of_shares([share(1, 2), None]) is None


def test_bootstrap_interval_is_the_normal_one_for_many_cases() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    estimate = mean(values)
    assert estimate is not None
    half = Z * values.std() / math.sqrt(len(values))
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.15 * half
    )
    assert (estimate.num, estimate.method) == (4000, "bootstrap")


def test_mean_of_means_weighs_strata_alike_and_resamples_within_them() -> None:
    strata = [np.zeros(900), np.ones(100)]
    estimate = mean_of_means(strata)
    assert estimate == Estimate(0.5, 0.5, 0.5, 1000, "bootstrap")


def test_bootstrap_is_the_same_every_time_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    whole = mean(values)
    assert whole == mean(values)
    monkeypatch.setattr("tokenreward.eval.statistics._BLOCK", 1000)
    blocked = mean(values)
    assert whole is not None
    assert blocked is not None
    assert (blocked.low, blocked.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_mover_puts_intervals_together() -> None:
    parts = [Estimate(0.9, 0.6, 1.0, 10, "wilson"), Estimate(0.5, 0.1, 0.8, 20, "wilson")]
    estimate = mean_of_shares(parts)
    assert estimate is not None
    assert estimate.value == pytest.approx(0.7)
    assert estimate.low == pytest.approx(0.7 - math.sqrt(0.3**2 + 0.4**2) / 2)
    assert estimate.high == pytest.approx(0.7 + math.sqrt(0.1**2 + 0.3**2) / 2)
    assert estimate.num == 30


def test_mover_of_one_share_is_its_own_interval() -> None:
    one = share(7, 9)
    estimate = mean_of_shares([one])
    assert one is not None
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (one.value, one.low, one.high)
    )


def arrays(cases: list[tuple[bool, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, scores, clusters = zip(*cases, strict=True)
    return np.array(labels), np.array(scores, dtype=float), np.array(clusters)


@given(CASES)
def test_area_is_the_share_of_couples_in_order(cases: list[tuple[bool, int, int]]) -> None:
    labels, scores, _ = arrays(cases)
    expected = share_in_order(labels.tolist(), scores.tolist())
    assert roc_auc(labels, scores) == (
        None if expected is None else pytest.approx(expected, abs=1e-12)
    )


@given(CASES)
def test_area_under_the_curve_is_the_area(cases: list[tuple[bool, int, int]]) -> None:
    labels, scores, _ = arrays(cases)
    curve, area = roc_curve(labels, scores), roc_auc(labels, scores)
    assert (curve is None) == (area is None)
    if curve is not None:
        false_rates, true_rates = curve
        assert (false_rates[0], true_rates[0]) == (0, 0)
        assert (false_rates[-1], true_rates[-1]) == (1, 1)
        assert np.trapezoid(true_rates, false_rates) == pytest.approx(area, abs=1e-12)


@given(CASES, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weighted_area_is_that_of_repeated_clusters(
    cases: list[tuple[bool, int, int]], times: list[int]
) -> None:
    labels, scores, clusters = arrays(cases)
    repeats = np.array(times)[clusters]
    expected = share_in_order(
        np.repeat(labels, repeats).tolist(), np.repeat(scores, repeats).tolist()
    )
    area = weighted_auc(labels, scores, clusters)(np.array(times))
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
    estimate = pooled_auc(labels, np.zeros(3), np.zeros(3, dtype=int))
    assert estimate is not None
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_a_million_cases_take_little_memory_and_no_couples() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(10**6) < 0.5, rng.normal(size=10**6)
    assert roc_auc(labels, scores) == pytest.approx(0.5, abs=0.002)
