"""The implicit reward (From r to Q*, 2404.12358): the log-ratio of the KL-optimal policy is the
optimal advantage.

Rewards r, a reference and beta are chosen; the KL-regularised problem is solved exactly; the scorer
sees nothing but the two policies' logits, each with a free constant per state. V* = beta *
logsumexp(Q* / beta), Q* = r + beta * log pi_ref + V*(s'), V* = 0 at the end.
"""

from __future__ import annotations

import numpy as np
import pytest

from fakes import oracle
from theory import tree
from theory.tree import NUM_TOKENS, RESPONSES, STATES, Table, Values
from tokenreward.scorers import implicit

BETAS = [0.1, 0.5, 2.0]
REWARDS, REFERENCE = tree.random_table(10, spread=1.0), tree.log_softmax(tree.random_table(11))


def solved(beta: float, reference: Table = REFERENCE) -> tuple[Table, Values]:
    """log pi* and V*."""
    q = tree.soft_q(REWARDS, beta, reference)
    value = {s: tree.soft_value(q[s], beta) for s in STATES}
    return {s: (q[s] - value[s]) / beta for s in STATES}, value


def implicit_rewards(policy: Table, reference: Table, beta: float) -> Table:
    logits = []
    for seed, log_probs in enumerate((policy, reference)):
        free = tree.random_table(seed, spread=3.0)
        logits.append(
            {s: log_probs.get(s, np.zeros(NUM_TOKENS)) + free[s][0] for s in STATES + RESPONSES}
        )
    scorer, options = implicit.Scorer(), implicit.Scorer.Options(beta=beta)
    return tree.rewards_of(
        lambda y: scorer.score(
            tree.sample_of(y), [tree.outputs_of(z, y, 1.0) for z in logits], options
        )
    )


@pytest.mark.parametrize("beta", BETAS)
def test_the_value_of_the_prompt_is_the_soft_maximum_of_all_returns(beta: float) -> None:
    """The solution itself: V*(s_0) = beta * log E_ref[exp(return / beta)], over every response."""
    terms = [tree.total(REWARDS, y) / beta + tree.total(REFERENCE, y) for y in RESPONSES]
    assert solved(beta)[1][()] == pytest.approx(beta * float(oracle.logsumexp(np.array(terms))))


@pytest.mark.parametrize("beta", BETAS)
def test_the_implicit_reward_is_the_optimal_advantage(beta: float) -> None:
    log_pi, value = solved(beta)
    implicit = implicit_rewards(log_pi, REFERENCE, beta)
    for s in STATES:
        after = np.array([value.get((*s, a), 0.0) for a in range(NUM_TOKENS)])
        np.testing.assert_allclose(implicit[s], REWARDS[s] + after - value[s], atol=1e-4)


@pytest.mark.parametrize("beta", BETAS)
def test_its_sum_is_the_return_less_the_value_of_the_prompt(beta: float) -> None:
    log_pi, value = solved(beta)
    implicit = implicit_rewards(log_pi, REFERENCE, beta)
    for y in RESPONSES:
        assert tree.total(implicit, y) == pytest.approx(
            tree.total(REWARDS, y) - value[()], abs=1e-4
        )


@pytest.mark.parametrize("beta", BETAS)
def test_preferences_by_summed_implicit_rewards_are_those_by_true_returns(beta: float) -> None:
    """Bradley-Terry: V*(s_0) cancels between two responses to one prompt."""
    implicit = implicit_rewards(solved(beta)[0], REFERENCE, beta)
    by_sum, by_return = (
        np.array([tree.total(r, y) for y in RESPONSES]) for r in (implicit, REWARDS)
    )
    chance = lambda x: 1 / (1 + np.exp(x[None] - x[:, None]))  # noqa: E731
    np.testing.assert_allclose(chance(by_sum), chance(by_return), atol=1e-4)
    assert np.ptp(by_return) > 1.0


def test_across_prompts_the_sums_do_not_compare() -> None:
    """Two first tokens seen as prompts: their values differ, so the better return may have the
    smaller sum."""
    log_pi, value = solved(0.5)
    implicit = implicit_rewards(log_pi, REFERENCE, 0.5)
    rest = [
        (
            y,
            tree.total(implicit, y) - implicit[()][y[0]],
            tree.total(REWARDS, y) - REWARDS[()][y[0]],
        )
        for y in RESPONSES
    ]
    assert value[0,] != value[1,]
    assert any(s > t and r < q for a, s, r in rest for b, t, q in rest if a[0] != b[0])
    assert not any(
        s > t + 1e-4 and r < q - 1e-4 for a, s, r in rest for b, t, q in rest if a[0] == b[0]
    )


@pytest.mark.parametrize("beta", BETAS)
def test_as_a_reward_it_has_the_same_optimal_policy(beta: float) -> None:
    log_pi, _ = solved(beta)
    again = tree.soft_q(implicit_rewards(log_pi, REFERENCE, beta), beta, REFERENCE)
    tree.assert_same_policy(again, {s: beta * row for s, row in log_pi.items()}, beta)


@pytest.mark.parametrize("beta", BETAS)
def test_its_mean_under_the_reference_is_minus_beta_times_the_divergence(beta: float) -> None:
    """Eq. 16: so plain values are biased to the negative, most where the models differ most."""
    log_pi, _ = solved(beta)
    implicit = implicit_rewards(log_pi, REFERENCE, beta)
    for s in STATES:
        prior = np.exp(REFERENCE[s])
        divergence = float(prior @ (REFERENCE[s] - log_pi[s]))
        assert float(prior @ implicit[s]) == pytest.approx(-beta * divergence, abs=1e-5)
        assert divergence > 0


def test_against_a_uniform_reference_the_endogenous_reward_is_it_shaped_by_the_value() -> None:
    beta, logits = 0.5, tree.random_table(12)
    uniform = {s: np.full(NUM_TOKENS, -np.log(NUM_TOKENS)) for s in STATES + RESPONSES}
    implicit = implicit_rewards(tree.log_softmax(logits, beta), uniform, beta)
    rewards = tree.endogenous_rewards(logits, alpha=beta, terminal="zero")
    for s in STATES:
        after = [
            tree.soft_value(logits[*s, a], beta) if len(s) + 1 < tree.HORIZON else 0.0
            for a in range(NUM_TOKENS)
        ]
        shaped = (
            implicit[s]
            - beta * np.log(NUM_TOKENS)
            + tree.soft_value(logits[s], beta)
            - np.array(after)
        )
        np.testing.assert_allclose(rewards[s], shaped, atol=1e-5)
