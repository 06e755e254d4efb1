"""The endogenous reward (2506.23235): a language model is optimal, in the soft sense, for the
reward it holds itself.

On a tree that is solved exactly, and on a real model through the engine. r(s, a) = Q(s, a) - V(s'),
V = alpha * logsumexp(Q / alpha), V = 0 past the end.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import oracle, tiny
from theory import tree
from theory.tree import HORIZON, NUM_TOKENS, RESPONSES, STATES, Table
from tokenreward.wire import RewardsRequest, parse

ALPHAS = [0.5, 1.0, 2.0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_soft_optimal_policy_under_the_recovered_reward_is_the_language_model(
    alpha: float,
) -> None:
    logits = tree.random_table(0)
    q = tree.soft_q(tree.endogenous_rewards(logits, alpha=alpha, terminal="zero"), alpha)
    tree.assert_same_policy(q, logits, alpha)
    for state in STATES:
        np.testing.assert_allclose(
            q[state], logits[state], atol=1e-5
        )  # and Q is the logits, constant and all


def test_another_reward_gives_another_policy() -> None:
    logits = tree.random_table(0)
    doubled = {s: 2 * row for s, row in tree.endogenous_rewards(logits, terminal="zero").items()}
    assert tree.policies_differ(tree.soft_q(doubled, 1.0), logits, 1.0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_reward_of_the_policy_that_is_optimal_for_a_reward_is_that_reward_again(
    alpha: float,
) -> None:
    """So a second round of self-improvement has nothing left to gain (2506.23235, section on
    iterating)."""
    rewards = tree.random_table(1)
    again = tree.endogenous_rewards(
        {**rewards, **tree.soft_q(rewards, alpha)}, alpha=alpha, terminal="zero"
    )
    for state in STATES:
        np.testing.assert_allclose(again[state], rewards[state], atol=1e-5)


def test_a_constant_of_the_state_moves_rewards_but_no_policy_and_no_comparison_of_a_prompt() -> (
    None
):
    logits, shift = tree.random_table(3), tree.random_values(4, STATES + RESPONSES)
    moved = {s: row + shift[s] for s, row in logits.items()}
    rewards, shifted = (tree.endogenous_rewards(z, terminal="zero") for z in (logits, moved))
    tree.assert_same_policy(tree.soft_q(shifted, 1.0), tree.soft_q(rewards, 1.0), 1.0)
    assert max(np.abs(shifted[s] - rewards[s]).max() for s in STATES) > 1.0
    for response in RESPONSES:
        assert abs(tree.total(shifted, response) - tree.total(rewards, response) - shift[()]) < 1e-4


def preference_gaps(truth: Table, learned: Table, alpha: float) -> float:
    """The largest total variation between the two models' Bradley-Terry preferences of two
    responses."""
    tables = (tree.endogenous_rewards(z, alpha=alpha, terminal="zero") for z in (truth, learned))
    ours, theirs = (np.array([tree.total(rewards, y) for y in RESPONSES]) for rewards in tables)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    return float(np.abs(sigmoid(ours[:, None] - ours) - sigmoid(theirs[:, None] - theirs)).max())


def policy_error(truth: Table, learned: Table, alpha: float) -> float:
    """eps_pi = max |log pi - log pi'| over states and tokens."""
    one, other = (tree.log_softmax(z, alpha) for z in (truth, learned))
    return max(float(np.abs(one[s] - other[s]).max()) for s in STATES)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.01, 2.0), alpha=st.floats(0.3, 2.0))
def test_preferences_are_off_by_at_most_half_alpha_horizon_times_the_policys_error(
    seed: int, noise: float, alpha: float
) -> None:
    """Theorem 1: D_TV <= (alpha * H / 2) * eps_pi. The sigmoid's slope is at most 1/4, and two
    returns from one prompt differ by alpha times the difference of two sums of H
    log-probabilities."""
    truth, error = tree.random_table(seed), tree.random_table(seed + 1, spread=noise)
    learned = {s: truth[s] + error[s] for s in truth}
    bound = alpha * HORIZON / 2 * policy_error(truth, learned, alpha)
    assert preference_gaps(truth, learned, alpha) <= bound + 1e-5


def test_that_bound_is_nearly_reached() -> None:
    truth = {s: np.zeros(NUM_TOKENS) for s in STATES + RESPONSES}
    learned = {s: np.array([0.01, -0.01, 0.0, 0.0]) for s in truth}
    bound = HORIZON / 2 * policy_error(truth, learned, 1.0)
    assert preference_gaps(truth, learned, 1.0) > 0.98 * bound


def draw(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, tiny.VOCAB_SIZE, size=length)


CASES = [
    oracle.Response(draw(n, 4 + n), draw(10 + n, length)) for n, length in enumerate([1, 2, 9, 30])
]


async def scores(engine: Any, **options: Any) -> list[float]:
    items = [{"prompt": what.prompt.tolist(), "response": what.response.tolist()} for what in CASES]
    body = {"scorer": "endogenous", "items": items, "options": options}
    results = (await engine.score(parse(RewardsRequest, body))).items
    for item in results:
        assert item.rewards.sum(dtype=np.float64) == pytest.approx(item.score, abs=1e-4)
    return [item.score for item in results]


async def test_the_sum_is_alpha_log_pi_and_the_values_at_both_ends_of_a_real_model(
    make_engine: Callable[..., Any],
) -> None:
    exact, engine = oracle.double(tiny.model("llama")), make_engine("causal_lm", ["endogenous"])
    logits = [oracle.logits(exact, what.ids) for what in CASES]
    for alpha, terminal in itertools.product([*ALPHAS, 0.1], ["zero", "bootstrap"]):
        for got, z, what in zip(
            await scores(engine, alpha=alpha, terminal=terminal), logits, CASES, strict=True
        ):
            first, last = (
                alpha * oracle.logsumexp(z[at] / alpha) for at in (len(what.prompt) - 1, len(z) - 1)
            )
            log_pi = oracle.log_probs(z, what, temperature=alpha).sum()
            truth = alpha * log_pi + first - (last if terminal == "bootstrap" else 0.0)
            assert abs(got - truth) <= 1e-5 * max(1.0, np.abs(z).max()) * len(what.response)


def changed(folder: Path, change: Callable[[Any], None]) -> Path:
    """The tiny model whose head has a bias, changed."""
    model = tiny.model("phi")
    change(model.lm_head)
    model.save_pretrained(folder)
    copy.deepcopy(tiny.tokenizer()).save_pretrained(folder)
    return folder


async def test_a_constant_on_a_real_models_logits_is_left_once_with_zero_and_never_with_bootstrap(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    plain = make_engine(
        "causal_lm", ["endogenous"], checkpoint=changed(tmp_path / "plain", lambda head: None)
    )
    moved_folder = changed(tmp_path / "moved", lambda head: head.bias.add_(5.0))
    moved = make_engine("causal_lm", ["endogenous"], checkpoint=moved_folder)
    for options, left in [
        ({"terminal": "zero"}, 5.0),
        ({"terminal": "bootstrap"}, 0.0),
        ({"form": "logprob"}, 0.0),
    ]:
        there, here = await scores(moved, **options), await scores(plain, **options)
        np.testing.assert_allclose(np.subtract(there, here), left, atol=2e-3)


async def test_logits_times_alpha_at_that_alpha_give_alpha_times_the_reward_of_a_real_model(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    def scale(head: torch.nn.Linear) -> None:
        head.weight.mul_(0.5)
        head.bias.mul_(0.5)

    plain = make_engine(
        "causal_lm", ["endogenous"], checkpoint=changed(tmp_path / "plain", lambda head: None)
    )
    scaled = make_engine(
        "causal_lm", ["endogenous"], checkpoint=changed(tmp_path / "scaled", scale)
    )
    np.testing.assert_allclose(
        await scores(scaled, alpha=0.5, terminal="zero"),
        0.5 * np.array(await scores(plain, terminal="zero")),
        rtol=1e-4,
        atol=1e-3,
    )
