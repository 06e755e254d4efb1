"""Figures: Wilson by its formula, the bootstrap by the normal law, MOVER by hand; nothing to judge
is None."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.eval.figure import Figure, mean, mean_of_means, mean_of_shares, share

Z = 1.959963984540054


def roots(right: int, num: int) -> tuple[float, float]:
    """Where |p - right/num| = z sqrt(p (1 - p) / num): Wilson's ends, as the roots of the
    quadratic."""
    value = right / num
    a, b, c = 1 + Z**2 / num, -(2 * value + Z**2 / num), value**2
    spread = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return (-b - spread) / (2 * a), (-b + spread) / (2 * a)


@given(st.integers(1, 3000).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_share_has_wilsons_interval(case: tuple[int, int]) -> None:
    found = share(*case)
    assert found is not None
    assert found.value == case[0] / case[1]
    assert (found.low, found.high) == pytest.approx(roots(*case), abs=1e-7)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_share_that_is_1_is_not_certain() -> None:
    found = share(1000, 1000)
    assert found is not None
    assert found.high == 1.0
    assert found.low == pytest.approx(1000 / (1000 + Z**2))


def test_no_cases_are_no_figure() -> None:
    assert share(0, 0) is None
    assert mean([]) is None
    assert mean_of_means([]) is None
    assert mean_of_means([np.ones(3), np.empty(0)]) is None
    assert mean_of_shares([]) is None
    assert mean_of_shares([share(1, 2), None]) is None


def test_bootstrap_interval_is_the_normal_one_for_many_cases() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    found = mean(values)
    assert found is not None
    half = Z * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.15 * half
    )
    assert (found.num, found.method) == (4000, "bootstrap")


def test_mean_of_means_weighs_strata_alike_and_resamples_within_them() -> None:
    strata = [np.zeros(900), np.ones(100)]
    found = mean_of_means(strata)
    assert found == Figure(0.5, 0.5, 0.5, 1000, "bootstrap")


def test_bootstrap_is_the_same_every_time_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    whole = mean(values)
    assert whole == mean(values)
    monkeypatch.setattr("tokenreward.eval.figure._BLOCK", 1000)
    blocked = mean(values)
    assert whole is not None
    assert blocked is not None
    assert (blocked.low, blocked.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_mover_puts_intervals_together() -> None:
    parts = [Figure(0.9, 0.6, 1.0, 10, "wilson"), Figure(0.5, 0.1, 0.8, 20, "wilson")]
    found = mean_of_shares(parts)
    assert found is not None
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - math.sqrt(0.3**2 + 0.4**2) / 2)
    assert found.high == pytest.approx(0.7 + math.sqrt(0.1**2 + 0.3**2) / 2)
    assert found.num == 30


def test_mover_of_one_share_is_its_own_interval() -> None:
    one = share(7, 9)
    found = mean_of_shares([one])
    assert one is not None
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((one.value, one.low, one.high))
