"""The implicit reward: the formula on two real models' logits, its symmetries, its clip and its
last token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fakes import oracle, tiny
from fakes.samples import sample_of_ids
from tokenreward.contract import Outputs, Signals
from tokenreward.scorers.implicit import Scorer

SCORER = Scorer()
SEEDS, LENGTHS = st.integers(0, 10_000), st.integers(1, 12)


def outputs_of(z: np.ndarray, what: oracle.Response, temperature: float) -> Outputs:
    """What the model layer would give, from full logits."""
    rows = z[len(what.prompt) - 1 :]
    chosen = rows[np.arange(len(what.response)), what.response].astype(np.float32)
    return Outputs(
        chosen=chosen, lse={temperature: oracle.logsumexp(rows / temperature).astype(np.float32)}
    )


def score(
    policy: np.ndarray,
    reference: np.ndarray,
    what: oracle.Response,
    *,
    keep: Any = None,
    **options: Any,
) -> Signals:
    chosen = Scorer.Options(**options)
    keep = np.ones(len(what.response), dtype=bool) if keep is None else keep
    sample = sample_of_ids(what.prompt, what.response, True, keep)
    return SCORER.score(
        sample, [outputs_of(z, what, chosen.temperature) for z in (policy, reference)], chosen
    )


def case(seed: int, length: int) -> tuple[np.ndarray, np.ndarray, oracle.Response]:
    generator = np.random.default_rng(seed)
    what = oracle.Response(
        generator.integers(0, 20, size=4), generator.integers(0, 20, size=length)
    )
    policy, reference = generator.normal(size=(2, 4 + length, 20)) * 5
    return policy, reference, what


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.1, 0.05, 2.0])
def test_values_are_beta_times_the_log_ratio_of_two_real_models(
    beta: float, temperature: float
) -> None:
    generator = np.random.default_rng(0)
    draw = lambda n: generator.integers(3, tiny.VOCAB_SIZE, size=n)  # noqa: E731
    what = oracle.Response(draw(6), draw(15))
    policy, reference = (
        oracle.logits(oracle.double(tiny.model("qwen3", seed=s)), what.ids) for s in (0, 1)
    )
    signals = score(policy, reference, what, beta=beta, temperature=temperature)
    of_policy, of_reference = (
        oracle.log_probs(z, what, temperature=temperature) for z in (policy, reference)
    )
    truth = beta * (of_policy - of_reference)
    assert np.abs(truth).max() > beta
    np.testing.assert_allclose(signals.values, truth, atol=1e-5 * beta * np.abs(of_policy).max())
    assert signals.values.dtype == np.float32
    assert signals.kind == "increments"
    assert signals.score == pytest.approx(truth.sum(), abs=1e-4 * beta * np.abs(of_policy).max())


@given(seed=SEEDS, length=LENGTHS)
def test_a_model_against_itself_is_exactly_zero(seed: int, length: int) -> None:
    policy, _, what = case(seed, length)
    signals = score(policy, policy, what, temperature=0.7)
    assert signals.values.tolist() == [0.0] * length
    assert signals.score == 0.0


@given(seed=SEEDS, length=LENGTHS, beta=st.floats(0.01, 3.0))
def test_swapped_models_give_exactly_the_negative(seed: int, length: int, beta: float) -> None:
    policy, reference, what = case(seed, length)
    there, back = (
        score(a, b, what, beta=beta) for a, b in ((policy, reference), (reference, policy))
    )
    np.testing.assert_array_equal(there.values, -back.values)
    assert there.score == -back.score


@given(seed=SEEDS, length=LENGTHS)
def test_a_constant_on_all_logits_of_a_position_changes_nothing(seed: int, length: int) -> None:
    policy, reference, what = case(seed, length)
    shift = np.random.default_rng(seed).normal(size=(len(policy), 1)) * 10
    there, shifted = score(policy, reference, what), score(policy + shift, reference, what)
    np.testing.assert_allclose(shifted.values, there.values, atol=1e-5)


def test_the_clip_is_of_each_tokens_product_with_beta_as_rto_has_it() -> None:
    policy, reference, what = case(3, 40)
    ratio = oracle.log_probs(policy, what, temperature=1.0) - oracle.log_probs(
        reference, what, temperature=1.0
    )
    truth = np.clip(0.05 * ratio, -0.05, 0.05)
    assert {-0.05, 0.05} < set(truth.tolist())
    signals = score(policy, reference, what, beta=0.05, token_clip=[-0.05, 0.05])
    np.testing.assert_allclose(signals.values, truth, atol=1e-6)
    assert signals.score == pytest.approx(truth.sum(), abs=1e-5)


def test_the_last_token_is_zero_as_in_prime_whatever_the_clip() -> None:
    policy, reference, what = case(4, 7)
    plain = score(policy, reference, what)
    without = score(policy, reference, what, last_token="zero")
    np.testing.assert_array_equal(without.values[:-1], plain.values[:-1])
    assert plain.values[-1] != 0.0
    assert without.values[-1] == 0.0
    assert without.score == pytest.approx(plain.values[:-1].sum(), rel=1e-6)
    clipped = score(policy, reference, what, last_token="zero", token_clip=[0.5, 1.0])
    assert (clipped.values[:-1] >= 0.5).all()
    assert clipped.values[-1] == 0.0


def test_the_score_is_the_sum_of_the_unmasked_values() -> None:
    policy, reference, what = case(5, 6)
    keep = np.array([True, False, True, True, False, True])
    signals = score(policy, reference, what, keep=keep, token_clip=[-0.3, 0.4])
    assert signals.score == pytest.approx(signals.values[keep].astype(np.float64).sum(), rel=1e-12)


def test_both_models_read_the_same_row() -> None:
    sample = sample_of_ids(np.array([5, 6]), np.array([7, 8, 9]), False, np.ones(3, dtype=bool))
    policy, reference = SCORER.rows(sample, Scorer.Options())
    assert (policy.model, reference.model) == ("policy", "reference")
    for row in (policy, reference):
        assert (row.ids.tolist(), row.start, row.stop) == ([5, 6, 7, 8, 9], 2, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": -0.1},
        {"beta": float("inf")},
        {"temperature": 0.0},
        {"token_clip": [0.1, -0.1]},
        {"token_clip": [0.1]},
        {"token_clip": [float("nan"), 0.1]},
        {"token_clip": 0.05},
        {"last_token": "drop"},
        {"gamma": 0.9},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scorer.Options(**options)
