"""Token numbers as unit numbers: increments and weights add up, of levels the last token stands."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.alignment import Floats, Ints, last_of_units, sum_over_units

FLOAT32 = st.floats(-(2.0**60), 2.0**60, width=32)


@st.composite
def owned_values(draw: st.DrawFn) -> tuple[Floats, Ints, int]:
    """Values of tokens, their units in order, and the number of units, some of which own
    nothing."""
    values = draw(st.lists(FLOAT32, min_size=1, max_size=30))
    num_units = draw(st.integers(1, 8))
    owner = sorted(
        draw(st.lists(st.integers(0, num_units - 1), min_size=len(values), max_size=len(values)))
    )
    return np.array(values, np.float32), np.array(owner, np.int64), num_units


@given(owned_values())
def test_a_units_sum_is_the_exact_sum_of_its_tokens_as_float32(
    case: tuple[Floats, Ints, int],
) -> None:
    values, owner, num_units = case
    units = sum_over_units(values, owner, num_units)
    assert units.shape == (num_units,)
    assert units.dtype == np.float32
    for unit, total in enumerate(units):
        mine = [float(value) for value, at in zip(values, owner, strict=True) if at == unit]
        assert abs(float(total) - math.fsum(mine)) <= 2.0**-23 * sum(map(abs, mine))


@given(owned_values())
def test_the_sum_over_units_is_the_sum_over_tokens_to_the_contracts_tolerance(
    case: tuple[Floats, Ints, int],
) -> None:
    values, owner, num_units = case
    units = sum_over_units(values, owner, num_units)
    difference = abs(math.fsum(map(float, units)) - math.fsum(map(float, values)))
    assert difference <= 1e-5 * max(1.0, math.fsum(abs(float(value)) for value in values))


def test_a_long_unit_is_not_added_up_in_float32() -> None:
    values = np.full(2**21, 0.1, np.float32)
    total = sum_over_units(values, np.zeros(len(values), np.int64), 1)[0]
    assert total == np.float32(float(np.float32(0.1)) * len(values))


@given(owned_values())
def test_a_units_level_is_bit_for_bit_that_of_its_last_token(
    case: tuple[Floats, Ints, int],
) -> None:
    values, owner, num_units = case
    units = last_of_units(values, owner, num_units)
    assert units.shape == (num_units,)
    assert units.dtype == np.float32
    for unit, level in enumerate(units):
        mine = [value for value, at in zip(values, owner, strict=True) if at == unit]
        assert level == (mine[-1] if mine else 0.0)


@pytest.mark.parametrize("into", [sum_over_units, last_of_units])
def test_if_every_token_is_a_unit_nothing_changes(
    into: Callable[[Floats, Ints, int], Floats],
) -> None:
    values = np.array([0.1, -7.0, 1e-45, -0.0], np.float32)
    assert into(values, np.arange(4), 4).tolist() == values.tolist()


@pytest.mark.parametrize("into", [sum_over_units, last_of_units])
def test_a_unit_that_owns_no_token_is_zero(into: Callable[[Floats, Ints, int], Floats]) -> None:
    assert into(np.ones(2, np.float32), np.array([1, 1]), 4).tolist()[2:] == [0.0, 0.0]
