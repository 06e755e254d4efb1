"""Potential-based shaping leaves the optimal policy as it is (Ng, Harada and Russell 1999); two
scorers of ours are it.

Adding phi(s') - phi(s), phi = 0 at the end, moves every Q(s, .) by the same -phi(s): neither its
maximum nor its softmax stands elsewhere.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import tree
from theory.tree import NUM_TOKENS, RESPONSES, STATES, Prefix, Table, Values
from tokenreward.contract import Outputs, Signals
from tokenreward.scorers import reward_model

SEEDS = st.integers(0, 10_000)


def shaped(rewards: Table, phi: Values) -> Table:
    return {
        s: rewards[s] + np.array([phi.get((*s, a), 0.0) for a in range(NUM_TOKENS)]) - phi[s]
        for s in STATES
    }


@settings(max_examples=20)
@given(seed=SEEDS, alpha=st.floats(0.3, 3.0))
def test_a_potential_that_is_zero_at_the_end_changes_no_optimal_policy(
    seed: int, alpha: float
) -> None:
    rewards, phi = tree.random_table(seed), tree.random_values(seed + 1, STATES)
    with_phi = shaped(rewards, phi)
    assert tree.greedy(with_phi) == tree.greedy(rewards)
    tree.assert_same_policy(tree.soft_q(with_phi, alpha), tree.soft_q(rewards, alpha), alpha)
    for state in STATES:
        np.testing.assert_allclose(
            tree.best_q(with_phi)[state], tree.best_q(rewards)[state] - phi[state], atol=1e-9
        )


def test_a_potential_that_is_not_zero_at_the_end_changes_them() -> None:
    rewards, phi = tree.random_table(0), tree.random_values(1, STATES + RESPONSES)
    with_phi = shaped(rewards, phi)
    assert tree.greedy(with_phi) != tree.greedy(rewards)
    assert tree.policies_differ(tree.soft_q(with_phi, 1.0), tree.soft_q(rewards, 1.0), 1.0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_endogenous_reward_is_the_log_probability_shaped_by_minus_the_value(
    alpha: float,
) -> None:
    logits = tree.random_table(2)
    log_probs = tree.endogenous_rewards(logits, form="logprob", temperature=alpha)
    scaled = {s: alpha * row for s, row in log_probs.items()}
    by_value = shaped(scaled, {s: -tree.soft_value(logits[s], alpha) for s in STATES})
    rewards = tree.endogenous_rewards(logits, alpha=alpha, terminal="zero")
    for state in STATES:
        np.testing.assert_allclose(rewards[state], by_value[state], atol=1e-5)
    assert tree.greedy(rewards) == tree.greedy(scaled)
    tree.assert_same_policy(tree.soft_q(rewards, alpha), tree.soft_q(scaled, alpha), alpha)


def test_bootstrapping_at_the_true_end_is_no_shaping() -> None:
    """It leaves -V(s_{H+1}) in the sum, which the response decides: `auto` takes zero after
    end-of-turn."""
    logits = tree.random_table(2)
    zero, bootstrap = (
        tree.endogenous_rewards(logits, terminal=terminal) for terminal in ("zero", "bootstrap")
    )
    assert tree.policies_differ(tree.soft_q(bootstrap, 1.0), tree.soft_q(zero, 1.0), 1.0)


def judged(scores: Values, response: Prefix, *, red: bool) -> Signals:
    """The reward model's score of every prefix, as the model layer gives them."""
    values = np.array([scores[response[:t]] for t in range(len(response) + 1)], dtype=np.float32)
    return reward_model.Scorer().score(
        tree.sample_of(response),
        [Outputs(values=values, pooled=float(values[-1]))],
        reward_model.Scorer.Options(red=red),
    )


@settings(max_examples=20)
@given(seed=SEEDS)
def test_red_is_the_final_score_shaped_by_the_scores_of_prefixes(seed: int) -> None:
    scores = tree.random_values(seed, STATES + RESPONSES)
    red = tree.rewards_of(lambda response: judged(scores, response, red=True))
    sparse = {
        s: np.array([scores[*s, a] if (*s, a) in RESPONSES else 0.0 for a in range(NUM_TOKENS)])
        for s in STATES
    }
    by_scores = shaped(sparse, {s: scores[s] for s in STATES})
    for state in STATES:
        np.testing.assert_allclose(red[state], by_scores[state], atol=1e-5)
    tree.assert_same_policy(tree.soft_q(red, 0.7), tree.soft_q(sparse, 0.7), 0.7)
    for response in RESPONSES:
        assert abs(tree.total(red, response) - (scores[response] - scores[()])) < 1e-5


def test_under_red_the_best_response_is_the_one_that_the_reward_model_scores_highest() -> None:
    scores = tree.random_values(5, STATES + RESPONSES)
    choose = tree.greedy(tree.rewards_of(lambda response: judged(scores, response, red=True)))
    response: Prefix = ()
    for _ in range(tree.HORIZON):
        response = (*response, choose[response])
    assert response == max(RESPONSES, key=lambda each: scores[each])
