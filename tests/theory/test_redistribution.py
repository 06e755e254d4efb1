"""ABC (2402.00782) spreads a score and keeps the return: for every beta, and so every comparison by
return.

What it is not, strictly, is potential-based shaping: its weights are those of the whole response,
so the reward of one token in one state depends on what follows. And a discount takes the guarantee
away.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import tree
from theory.tree import HORIZON, RESPONSES, Prefix
from tokenreward import credit as credits
from tokenreward.contract import Signals
from tokenreward.wire import Credit

SCORES = tree.random_values(20, RESPONSES)
WEIGHTS = {
    y: np.random.default_rng(place).dirichlet(np.ones(HORIZON)) for place, y in enumerate(RESPONSES)
}


def rewards(response: Prefix, name: str, **parameters: float) -> np.ndarray:
    signals = Signals(
        score=SCORES[response],
        weights=WEIGHTS[response].astype(np.float32),
    )
    keep, credit = np.ones(HORIZON, dtype=np.bool_), Credit(name=name, **parameters)
    return credits.assign(signals, keep, credit, name=name)[0].astype(np.float64)


def returns(name: str, *, gamma: float = 1.0, **parameters: float) -> np.ndarray:
    return np.array(
        [rewards(y, name, **parameters) @ gamma ** np.arange(HORIZON) for y in RESPONSES]
    )


TRUE = np.array([SCORES[y] for y in RESPONSES])


@settings(max_examples=30)
@given(beta=st.floats(0, 1))
def test_the_return_is_the_score_for_every_beta_and_so_is_the_ranking(beta: float) -> None:
    spread = returns("attention", beta=beta)
    np.testing.assert_allclose(spread, TRUE, atol=1e-6)
    assert np.argsort(spread).tolist() == np.argsort(TRUE).tolist()


@pytest.mark.parametrize("name", ["last", "uniform"])
def test_so_do_the_credits_it_stands_between(name: str) -> None:
    np.testing.assert_allclose(returns(name), TRUE, atol=1e-6)


def test_beta_zero_is_plain_rlhf() -> None:
    for response in RESPONSES:
        np.testing.assert_array_equal(
            rewards(response, "attention", beta=0.0), rewards(response, "last")
        )


@pytest.mark.parametrize("beta", [0.8, 1.0])
def test_under_a_discount_returns_and_ranking_are_others(beta: float) -> None:
    spread, plain = returns("attention", gamma=0.7, beta=beta), returns("last", gamma=0.7)
    assert np.argsort(plain).tolist() == np.argsort(TRUE).tolist()  # all scores at one distance
    assert np.argsort(spread).tolist() != np.argsort(TRUE).tolist()


def test_the_first_tokens_reward_depends_on_what_follows() -> None:
    first = [rewards(y, "attention")[0] for y in RESPONSES if y[0] == 0]
    assert np.ptp(first) > 0.1


def test_the_credit_discount_gives_returns_which_a_trainer_must_not_add_up_again() -> None:
    spread = np.array([rewards(y, "discount", gamma=0.9) for y in RESPONSES])
    np.testing.assert_allclose(spread[:, 0], 0.9 ** (HORIZON - 1) * TRUE, atol=1e-6)
    np.testing.assert_allclose(spread[:, -1], TRUE, atol=1e-6)
    assert np.abs(spread.sum(axis=1) - TRUE).max() > 1.0
