"""The five rules, against formulas written out one unit at a time in float64, and the invariants of
the contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.contract import Signals
from tokenreward.credit import assign
from tokenreward.wire import Credit, CreditName

RULES: tuple[CreditName, ...] = ("values", "last", "uniform", "attention", "discount")
NUMBERS = st.floats(-1e4, 1e4, width=32)
FRACTIONS = st.floats(0, 1)


@dataclass(frozen=True)
class Case:
    keep: list[bool]
    score: float
    values: list[float]
    weights: list[float]

    @property
    def signals(self) -> Signals:
        return Signals(
            score=self.score,
            values=np.array(self.values, np.float32),
            weights=np.array(self.weights, np.float32),
        )

    @property
    def unmasked(self) -> list[int]:
        return [index for index, flag in enumerate(self.keep) if flag]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Units of which at least one is kept; weights of the kept sum to 1, as a scorer promises."""
    keep = draw(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
    raw = [draw(st.floats(0.01, 1)) if flag else 0.0 for flag in keep]
    values = draw(st.lists(NUMBERS, min_size=len(keep), max_size=len(keep)))
    return Case(keep, draw(NUMBERS), values, [weight / math.fsum(raw) for weight in raw])


def oracle(rule: str, case: Case, *, beta: float = 0.8, gamma: float = 1.0) -> list[float]:
    """Section 3 of the contract, T = number of unmasked units."""
    rewards = [0.0] * len(case.keep)
    for t, index in enumerate(case.unmasked):
        is_last = t == len(case.unmasked) - 1
        rewards[index] = {
            "values": float(np.float32(case.values[index])),
            "last": case.score if is_last else 0.0,
            "uniform": case.score / len(case.unmasked),
            "attention": beta * case.score * float(np.float32(case.weights[index]))
            + (1 - beta) * case.score * is_last,
            "discount": case.score * gamma ** (len(case.unmasked) - 1 - t),
        }[rule]
    return rewards


def rewards(rule: CreditName, case: Case, **credit: Any) -> np.ndarray:
    result, _ = assign(case.signals, np.array(case.keep), Credit(**credit), name=rule)
    assert result.dtype == np.float32
    assert result.shape == (len(case.keep),)
    return result


def close(actual: np.ndarray, expected: list[float]) -> bool:
    """Equal to within the rounding of a float32."""
    return all(
        abs(float(a) - e) <= 1e-6 * max(abs(e), 1e-30)
        for a, e in zip(actual, expected, strict=True)
    )


def tolerance(result: np.ndarray) -> float:
    """What the contract allows a sum of rewards to be off."""
    return 1e-5 * max(1.0, math.fsum(abs(float(r)) for r in result))


@pytest.mark.parametrize("rule", RULES)
@given(case=cases(), beta=FRACTIONS, gamma=FRACTIONS)
def test_every_rule_gives_what_its_formula_says(
    case: Case, rule: CreditName, beta: float, gamma: float
) -> None:
    parameters = {"attention": {"beta": beta}, "discount": {"gamma": gamma}}.get(rule, {})
    assert close(rewards(rule, case, **parameters), oracle(rule, case, **parameters))


@pytest.mark.parametrize("rule", RULES)
@given(case=cases())
def test_without_parameters_beta_is_the_papers_and_nothing_is_discounted(
    case: Case, rule: CreditName
) -> None:
    assert close(rewards(rule, case), oracle(rule, case, beta=0.8, gamma=1.0))


@given(cases(), st.sampled_from(RULES))
def test_a_masked_unit_gets_exactly_zero_whatever_the_rule(case: Case, rule: CreditName) -> None:
    result = rewards(rule, case, shift=3.0)
    masked = [float(reward) for reward, flag in zip(result, case.keep, strict=True) if not flag]
    assert all(reward == 0 and math.copysign(1, reward) == 1 for reward in masked)


@given(cases(), st.sampled_from(["last", "uniform"]))
def test_last_and_uniform_sum_to_the_score(case: Case, rule: CreditName) -> None:
    result = rewards(rule, case)
    assert abs(math.fsum(map(float, result)) - case.score) <= tolerance(result)


@given(cases(), FRACTIONS)
def test_attention_sums_to_the_score_for_every_beta(case: Case, beta: float) -> None:
    result = rewards("attention", case, beta=beta)
    assert abs(math.fsum(map(float, result)) - case.score) <= tolerance(result)


@given(cases())
def test_attention_with_beta_zero_is_last(case: Case) -> None:
    assert rewards("attention", case, beta=0.0).tolist() == rewards("last", case).tolist()


@given(cases(), FRACTIONS)
def test_the_last_discounted_entry_is_the_score(case: Case, gamma: float) -> None:
    assert rewards("discount", case, gamma=gamma)[case.unmasked[-1]] == np.float32(case.score)


@given(cases())
def test_gamma_zero_leaves_only_the_last_entry(case: Case) -> None:
    assert rewards("discount", case, gamma=0.0).tolist() == rewards("last", case).tolist()


@given(cases())
def test_last_puts_everything_on_the_last_unmasked_unit_and_nothing_elsewhere(case: Case) -> None:
    result = rewards("last", case)
    assert result[case.unmasked[-1]] == np.float32(case.score)
    assert sum(reward != 0 for reward in result) <= 1


@given(cases())
def test_values_are_the_scorers_own_bit_for_bit(case: Case) -> None:
    result = rewards("values", case)
    for index in case.unmasked:
        assert result[index] == np.float32(case.values[index])


@given(cases(), st.sampled_from(RULES))
def test_unmasked_units_get_what_they_would_get_if_the_masked_ones_had_never_been_there(
    case: Case, rule: CreditName
) -> None:
    alone = Case(
        [True] * len(case.unmasked),
        case.score,
        [case.values[index] for index in case.unmasked],
        [case.weights[index] for index in case.unmasked],
    )
    assert rewards(rule, case)[case.unmasked].tolist() == rewards(rule, alone).tolist()


@given(cases(), st.sampled_from(RULES[1:]), NUMBERS, NUMBERS)
def test_scale_and_shift_act_on_the_score_and_the_score_is_reported_moved(
    case: Case, rule: CreditName, scale: float, shift: float
) -> None:
    _, score = assign(
        case.signals, np.array(case.keep), Credit(scale=scale, shift=shift), name=rule
    )
    moved = Case(case.keep, case.score * scale + shift, case.values, case.weights)
    assert score == moved.score
    assert close(rewards(rule, case, scale=scale, shift=shift), oracle(rule, moved))


@given(cases(), NUMBERS, NUMBERS)
def test_with_values_scale_and_shift_act_on_each_value_and_leave_the_score(
    case: Case, scale: float, shift: float
) -> None:
    result, score = assign(
        case.signals, np.array(case.keep), Credit(scale=scale, shift=shift), name="values"
    )
    assert score == case.score
    for index in case.unmasked:
        expected = float(np.float32(case.values[index])) * scale + shift
        assert result[index] == np.float32(expected)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (3.0, 5.0),
        (2.0, 5.0),
        (1.0, 3.0),
        (0.0, 1.0),
        (-3.0, -1.0),
    ],  # 2 * score + 1, then limited to [-1, 5]
)
def test_the_clip_comes_after_scale_and_shift(score: float, expected: float) -> None:
    case = Case([True, True], score, [score, 0.0], [0.5, 0.5])
    credit = {"scale": 2.0, "shift": 1.0, "clip": [-1.0, 5.0]}
    assert rewards("last", case, **credit).tolist() == [0.0, expected]
    assert rewards("values", case, **credit).tolist() == [expected, 1.0]
    _, moved = assign(case.signals, np.array(case.keep), Credit(**credit), name="last")
    assert moved == expected


@given(cases(), st.lists(NUMBERS, min_size=2, max_size=2).map(sorted))
def test_clipped_values_lie_in_the_range_and_masked_ones_stay_zero(
    case: Case, clip: list[float]
) -> None:
    for reward, flag in zip(rewards("values", case, clip=clip), case.keep, strict=True):
        assert clip[0] <= reward <= clip[1] if flag else reward == 0


def test_a_clip_does_not_limit_the_entries_that_a_rule_makes_of_the_score() -> None:
    case = Case([True, True], 4.0, [0.0, 0.0], [0.5, 0.5])
    assert rewards("uniform", case, clip=[3.0, 5.0]).tolist() == [2.0, 2.0]


@given(cases(), st.sampled_from(RULES))
def test_the_signals_are_not_written_to(case: Case, rule: CreditName) -> None:
    signals, keep = case.signals, np.array(case.keep)
    for array in (keep, signals.values, signals.weights):
        assert array is not None
        array.flags.writeable = False
    assign(signals, keep, Credit(scale=2.0, clip=[0.0, 1.0]), name=rule)


@pytest.mark.parametrize("rule", RULES)
def test_what_does_not_fit_a_float32_is_infinite_and_not_the_largest_float(
    rule: CreditName,
) -> None:
    case = Case([True, False], 2.0, [2.0, 2.0], [1.0, 0.0])
    assert rewards(rule, case, scale=1e300).tolist() == [math.inf, 0.0]


def test_a_long_uniform_spread_adds_up_in_float64() -> None:
    case = Case([True] * 100_000, 1.0, [0.0] * 100_000, [1e-5] * 100_000)
    assert rewards("uniform", case)[0] == np.float32(1e-5)
    assert abs(math.fsum(map(float, rewards("attention", case))) - 1) <= 1e-5
