"""The endogenous reward: the formula on a real model's logits, and the identities of the soft
Bellman equation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fakes import oracle, tiny
from fakes.samples import sample_of_ids
from tokenreward.contract import Outputs, Sample
from tokenreward.scorers.endogenous import Scorer

SCORER = Scorer()
ROWS = st.integers(1, 12)


def sample_of(what: oracle.Response, *, terminal: bool, keep: np.ndarray | None = None) -> Sample:
    keep = np.ones(len(what.response), dtype=bool) if keep is None else keep
    return sample_of_ids(what.prompt, what.response, terminal, keep)


def outputs_of(z: np.ndarray, what: oracle.Response, temperature: float) -> Outputs:
    """What the model layer would give, from full logits."""
    rows = z[len(what.prompt) - 1 :]
    chosen = rows[np.arange(len(what.response)), what.response].astype(np.float32)
    return Outputs(
        chosen=chosen, lse={temperature: oracle.logsumexp(rows / temperature).astype(np.float32)}
    )


def case(seed: int, length: int) -> tuple[np.ndarray, oracle.Response]:
    generator = np.random.default_rng(seed)
    what = oracle.Response(
        generator.integers(0, 20, size=4), generator.integers(0, 20, size=length)
    )
    return generator.normal(size=(4 + length, 20)) * 5, what


def score(z: np.ndarray, what: oracle.Response, *, keep: Any = None, **options: Any) -> Any:
    chosen = Scorer.Options(**options)
    outputs = [outputs_of(z, what, chosen.softness)]
    return SCORER.score(sample_of(what, terminal=True, keep=keep), outputs, chosen)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("terminal", ["zero", "bootstrap"])
def test_soft_bellman_is_the_formula_on_a_real_models_logits(alpha: float, terminal: str) -> None:
    generator = np.random.default_rng(0)
    draw = lambda n: generator.integers(3, tiny.VOCAB_SIZE, size=n)  # noqa: E731
    what = oracle.Response(draw(6), draw(15))
    z = oracle.logits(oracle.double(tiny.model("qwen3")), what.ids)
    signals = score(z, what, alpha=alpha, terminal=terminal)
    truth = oracle.soft_bellman(z, what, alpha=alpha, terminal_is_zero=terminal == "zero")
    np.testing.assert_allclose(signals.values, truth, rtol=1e-5, atol=1e-5)
    assert signals.kind == "increments"
    assert signals.score == pytest.approx(truth.sum(), rel=1e-5)


@given(seed=st.integers(0, 10_000), length=ROWS, alpha=st.floats(0.2, 4.0))
def test_the_sum_telescopes_to_log_pi_and_the_values_at_both_ends(
    seed: int, length: int, alpha: float
) -> None:
    z, what = case(seed, length)
    log_pi = oracle.log_probs(z, what, temperature=alpha).sum()
    first, last = (
        alpha * oracle.logsumexp(z[i] / alpha) for i in (len(what.prompt) - 1, len(what.ids) - 1)
    )
    bound = 1e-4 * max(1.0, np.abs(z).max())
    assert (
        abs(score(z, what, alpha=alpha, terminal="zero").score - (alpha * log_pi + first)) < bound
    )
    assert (
        abs(
            score(z, what, alpha=alpha, terminal="bootstrap").score
            - (alpha * log_pi + first - last)
        )
        < bound
    )


@given(seed=st.integers(0, 10_000), length=ROWS)
def test_a_shift_of_all_logits_of_a_state_moves_the_zero_terminal_sum_by_the_first_shift_only(
    seed: int, length: int
) -> None:
    z, what = case(seed, length)
    shift = np.random.default_rng(seed + 1).normal(size=(len(z), 1)) * 3
    moved = score(z + shift, what, terminal="zero").score - score(z, what, terminal="zero").score
    assert moved == pytest.approx(shift[len(what.prompt) - 1, 0], abs=1e-3)


@given(seed=st.integers(0, 10_000), length=ROWS)
def test_on_log_softmaxed_logits_soft_bellman_is_logprob(seed: int, length: int) -> None:
    z, what = case(seed, length)
    normalised = z - oracle.logsumexp(z)[:, None]
    np.testing.assert_allclose(
        score(normalised, what, terminal="bootstrap").values,
        score(z, what, form="logprob").values,
        atol=1e-4,
    )


@given(seed=st.integers(0, 10_000), length=ROWS, alpha=st.floats(0.2, 4.0))
def test_alpha_scales(seed: int, length: int, alpha: float) -> None:
    z, what = case(seed, length)
    np.testing.assert_allclose(
        score(alpha * z, what, alpha=alpha).values,
        alpha * score(z, what).values,
        rtol=1e-4,
        atol=1e-4,
    )


def test_logprob_is_log_softmax_at_the_temperature() -> None:
    z, what = case(3, 9)
    signals = score(z, what, form="logprob", temperature=0.7)
    np.testing.assert_allclose(
        signals.values, oracle.log_probs(z, what, temperature=0.7), rtol=1e-5
    )


@pytest.mark.parametrize(("ends_turn", "named"), [(True, "zero"), (False, "bootstrap")])
def test_auto_is_zero_after_end_of_turn_and_bootstrap_otherwise(
    ends_turn: bool, named: str
) -> None:
    z, what = case(4, 6)
    sample, outputs = sample_of(what, terminal=ends_turn), [outputs_of(z, what, 1.0)]
    by_name = {
        name: SCORER.score(sample, outputs, Scorer.Options(terminal=name)).values
        for name in ("zero", "bootstrap")
    }
    assert by_name["zero"][-1] != by_name["bootstrap"][-1]
    np.testing.assert_array_equal(
        SCORER.score(sample, outputs, Scorer.Options()).values, by_name[named]
    )


def test_masked_tokens_are_in_no_aggregate() -> None:
    z, what = case(5, 6)
    keep = np.array([True, False, True, True, False, True])
    truth = oracle.soft_bellman(z, what, alpha=1.0, terminal_is_zero=True)[keep]
    assert score(z, what, keep=keep).score == pytest.approx(truth.sum(), rel=1e-5)
    assert score(z, what, keep=keep, aggregation="mean").score == pytest.approx(
        truth.mean(), rel=1e-5
    )
    discounted = score(
        z, what, keep=keep, aggregation="discounted_sum", gamma=0.5, clip_min=0.2
    ).score
    assert discounted == pytest.approx((truth * [1, 0.5, 0.25, 0.2]).sum(), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"form": "logprob", "alpha": 0.5},
        {"form": "logprob", "terminal": "zero"},
        {"gamma": 0.9},
        {"aggregation": "mean", "clip_min": 0.1},
        {"alpha": 0.0},
        {"alpha": float("inf")},
        {"aggregation": "discounted_sum", "gamma": 1.5},
    ],
)
def test_options_without_effect_or_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scorer.Options(**options)
