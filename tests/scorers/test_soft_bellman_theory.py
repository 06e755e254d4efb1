"""The theory itself, on a tabular token MDP: soft value iteration under the recovered reward gives the policy back.

States are token prefixes up to a horizon; logits Q(s, a) are arbitrary. Reward: r(s, a) = Q(s, a) - V(s'), V = alpha *
logsumexp(Q / alpha), V = 0 at the horizon. Maximum-entropy RL on that reward must return softmax(Q / alpha).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import oracle
from tokenreward.contract import Outputs, Sample
from tokenreward.scorers.endogenous import Scorer

NUM_TOKENS, HORIZON = 4, 3


def logits_of_every_prefix(seed: int) -> dict[tuple[int, ...], np.ndarray]:
    generator = np.random.default_rng(seed)
    prefixes = itertools.chain.from_iterable(itertools.product(range(NUM_TOKENS), repeat=n) for n in range(HORIZON))
    return {prefix: generator.normal(size=NUM_TOKENS) * 2 for prefix in prefixes}


def recovered_rewards(q: dict[tuple[int, ...], np.ndarray], alpha: float) -> dict[tuple[int, ...], float]:
    """r(s, a) for every s + (a,), through the scorer, one whole response at a time."""
    rewards: dict[tuple[int, ...], float] = {}
    scorer, options = Scorer(), Scorer.Options(alpha=alpha, terminal="zero")
    for response in itertools.product(range(NUM_TOKENS), repeat=HORIZON):
        rows = np.array([q[response[:t]] for t in range(HORIZON)] + [np.zeros(NUM_TOKENS)])
        chosen = np.array([q[response[:t]][response[t]] for t in range(HORIZON)], dtype=np.float32)
        outputs = Outputs(chosen=chosen, lse={alpha: oracle.logsumexp(rows / alpha).astype(np.float32)})
        sample = Sample(np.array([0]), np.array(response), terminal=True, keep=np.ones(HORIZON, dtype=bool))
        values = scorer.score(sample, [outputs], options).values
        for t in range(HORIZON):
            rewards[response[: t + 1]] = float(values[t])
    return rewards


def soft_optimal_policy(rewards: dict[tuple[int, ...], float], alpha: float) -> dict[tuple[int, ...], np.ndarray]:
    """Backward soft value iteration, written for any reward on the tree."""
    value: dict[tuple[int, ...], float] = {}
    policy: dict[tuple[int, ...], np.ndarray] = {}
    for depth in range(HORIZON - 1, -1, -1):
        for state in itertools.product(range(NUM_TOKENS), repeat=depth):
            q = np.array([rewards[(*state, a)] + value.get((*state, a), 0.0) for a in range(NUM_TOKENS)])
            value[state] = alpha * float(oracle.logsumexp(q / alpha))
            policy[state] = np.exp((q - value[state]) / alpha)
    return policy


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_soft_value_iteration_under_the_recovered_reward_gives_the_policy_back(alpha: float) -> None:
    q = logits_of_every_prefix(seed=0)
    policy = soft_optimal_policy(recovered_rewards(q, alpha), alpha)
    for state, row in q.items():
        expected = np.exp((row - alpha * oracle.logsumexp(row / alpha)) / alpha)
        np.testing.assert_allclose(policy[state], expected, atol=1e-5)


def test_another_reward_gives_another_policy() -> None:
    """The test above can fail: log-probabilities scaled by two are optimal for a sharper policy."""
    q = logits_of_every_prefix(seed=0)
    doubled = {state: 2 * reward for state, reward in recovered_rewards(q, 1.0).items()}
    policy = soft_optimal_policy(doubled, 1.0)
    gaps = [np.abs(policy[s] - np.exp(row - oracle.logsumexp(row))).max() for s, row in q.items()]
    assert max(gaps) > 0.1
