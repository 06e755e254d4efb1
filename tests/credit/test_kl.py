"""The KL penalty: r_t -= coef * k_t, d = policy_logprobs - ref_logprobs, in the caller's units and
last of all."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenreward.credit import kl, penalise
from tokenreward.errors import InvalidField, LengthMismatch
from tokenreward.wire import Credit, parse

Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")
LOG_PROBS = st.floats(-30, 0)


def credit(coef: float = 0.1, estimator: Estimator = "k1") -> Credit:
    return Credit.model_validate({"kl": {"coef": coef, "estimator": estimator}})


def oracle(d: float, estimator: Estimator) -> float:
    """The formulas of section 3; k3 by its series where subtraction would cancel."""
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d * d / 2
    if abs(d) < 1:
        return math.fsum((-d) ** n / math.factorial(n) for n in range(2, 25))
    return math.exp(-d) - 1 + d


@given(st.floats(-30, 30), st.sampled_from(ESTIMATORS))
@example(1e-8, "k3")
@example(-1e-8, "k3")
@example(0.03125, "k3")
@example(-0.999, "k3")
def test_each_estimator_is_its_formula(d: float, estimator: Estimator) -> None:
    estimated = float(kl.estimate(np.array([d]), estimator)[0])
    exact = oracle(d, estimator)
    assert abs(estimated - exact) <= 1e-15 * max(abs(d), math.expm1(-d), abs(exact))


@given(st.floats(-700, 700) | st.floats(-1e-15, 1e-15), st.sampled_from(["k2", "k3"]))
def test_k2_and_k3_are_never_negative(d: float, estimator: Estimator) -> None:
    assert kl.estimate(np.array([d]), estimator)[0] >= 0


def bounded(low: float, value: float, high: float) -> float:
    return min(max(value, low), high)


@given(st.floats(-1e4, 1e4) | st.floats(-30, 30))
@example(-20.0)
@example(-3.0)
@example(13.0)
@example(1e-8)
def test_verls_clamp_bounds_the_exponent_and_then_k3(d: float) -> None:
    x = bounded(-20, -d, 20)
    expected = bounded(-10, oracle(-x, "k3"), 10)
    estimated = float(kl.estimate(np.array([d]), "k3", "verl")[0])
    assert abs(estimated - expected) <= 1e-15 * max(abs(x), abs(expected))
    assert 0 <= estimated <= 10


@given(st.floats(-1e4, 1e4, width=32) | st.floats(-12, 12, width=32), st.sampled_from(ESTIMATORS))
@example(-2.5, "k3")
@example(-1000.0, "k3")
@example(4.5, "k2")
@example(-11.0, "k1")
def test_openrlhfs_clamp_bounds_every_estimator_in_float32(d: float, estimator: Estimator) -> None:
    expected = bounded(-10, oracle(max(d, -500.0), estimator), 10)
    with np.errstate(over="ignore"):
        estimated = float(kl.estimate(np.array([d]), estimator, "openrlhf")[0])
    assert abs(estimated - expected) <= 2e-7 * min(max(abs(d), math.expm1(min(-d, 5.0))), 20.0)
    assert estimated == float(np.float32(estimated))
    assert abs(estimated) <= 10


def test_the_two_clamps_differ_where_the_policy_is_far_surer_than_the_reference() -> None:
    far = np.array([25.0])
    assert kl.estimate(far, "k3")[0] == pytest.approx(24.0)
    assert kl.estimate(far, "k3", "verl")[0] == 10.0
    assert kl.estimate(far, "k1", "openrlhf")[0] == 10.0
    assert kl.estimate(-far, "k1", "openrlhf")[0] == -10.0


@pytest.mark.parametrize(
    ("clamp", "penalised"), [(None, -math.inf), ("verl", -10.0), ("openrlhf", -10.0)]
)
def test_a_penalty_past_all_floats_is_bounded_only_for_whom_it_is_asked(
    clamp: Any, penalised: float
) -> None:
    request = Credit.model_validate({"kl": {"coef": 1.0, "estimator": "k3", "clamp": clamp}})
    rewards = penalise(np.zeros(1, np.float32), request, np.ones(1, bool), [-1000.0], [0.0])
    assert rewards.tolist() == [penalised]


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_verls_clamp_on_an_estimator_that_verl_does_not_bound_is_refused(
    estimator: Estimator,
) -> None:
    with pytest.raises(
        InvalidField, match=f"`clamp` `verl` has no effect with estimator `{estimator}`"
    ) as caught:
        parse(
            Credit,
            {"kl": {"coef": 1.0, "estimator": estimator, "clamp": "verl"}},
            prefix=("credit",),
        )
    assert caught.value.param == "credit.kl"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_policies_cost_nothing(estimator: Estimator) -> None:
    assert kl.estimate(np.zeros(3), estimator).tolist() == [0.0, 0.0, 0.0]


def test_k1_is_positive_where_the_policy_is_surer_than_the_reference() -> None:
    rewards = penalise(
        np.zeros(2, np.float32), credit(1.0), np.ones(2, bool), [-0.1, -3.0], [-2.1, -1.0]
    )
    assert rewards.tolist() == [np.float32(-2.0), np.float32(2.0)]


@st.composite
def penalties(draw: st.DrawFn) -> dict[str, Any]:
    num_units = draw(st.integers(1, 8))
    lists = [draw(st.lists(LOG_PROBS, min_size=num_units, max_size=num_units)) for _ in range(2)]
    return {
        "rewards": draw(
            st.lists(st.floats(-100, 100, width=32), min_size=num_units, max_size=num_units)
        ),
        "keep": draw(st.lists(st.booleans(), min_size=num_units, max_size=num_units)),
        "policy": lists[0],
        "ref": lists[1],
        "coef": draw(st.floats(-1, 1)),
        "estimator": draw(st.sampled_from(ESTIMATORS)),
    }


@given(penalties())
def test_unmasked_units_lose_coef_times_k_and_masked_ones_lose_nothing(
    case: dict[str, Any],
) -> None:
    penalised = penalise(
        np.array(case["rewards"], np.float32),
        credit(case["coef"], case["estimator"]),
        np.array(case["keep"]),
        case["policy"],
        case["ref"],
    )
    assert penalised.dtype == np.float32
    for t, reward in enumerate(penalised):
        before = case["rewards"][t]
        if not case["keep"][t]:
            assert reward == before
            continue
        expected = before - case["coef"] * oracle(
            case["policy"][t] - case["ref"][t], case["estimator"]
        )
        assert abs(float(reward) - expected) <= 1e-6 * max(abs(expected), abs(before), 1e-6)


def test_without_kl_log_probs_change_nothing() -> None:
    rewards = np.array([1.0, 2.0], np.float32)
    unchanged = penalise(rewards, Credit(), np.ones(2, bool), [-1.0, -2.0], [-2.0])
    assert unchanged.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("policy", "ref", "field"),
    [
        (None, [-1.0, -1.0], "policy_logprobs"),
        ([-1.0, -1.0], None, "ref_logprobs"),
        (None, None, "policy_logprobs"),
        ([-1.0], [-1.0, -1.0], "policy_logprobs"),
        ([-1.0, -1.0], [-1.0, -1.0, -1.0], "ref_logprobs"),
        ([], [], "policy_logprobs"),
    ],
)
def test_log_probs_that_are_missing_or_of_another_length_are_a_length_mismatch_and_never_repaired(
    policy: list[float] | None, ref: list[float] | None, field: str
) -> None:
    with pytest.raises(LengthMismatch, match="needs 2 entries") as caught:
        penalise(np.zeros(2, np.float32), credit(), np.ones(2, bool), policy, ref)
    assert caught.value.param == field
    assert caught.value.status == 200


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_penalty_beyond_all_floats_is_infinite_but_not_on_a_masked_unit(
    estimator: Estimator,
) -> None:
    rewards = np.array([1.0, 1.0], np.float32)
    penalised = penalise(
        rewards, credit(1.0, estimator), np.array([True, False]), [-1e200] * 2, [0.0] * 2
    )
    assert penalised.tolist() == [-math.inf, 1.0]
