"""A token MDP small enough to be solved exactly: every response of HORIZON tokens out of
NUM_TOKENS.

A state is the prefix written so far. A `Table` has one row [NUM_TOKENS] per state: logits, rewards,
Q or log pi. Everything here is float64 and written from the definitions; scorers are asked one
whole response at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fakes import oracle
from fakes.samples import sample_of_ids
from tokenreward.contract import Outputs, Sample, Signals
from tokenreward.scorers import endogenous

NUM_TOKENS, HORIZON = 4, 3
Prefix = tuple[int, ...]
Table = dict[Prefix, np.ndarray]
Values = dict[Prefix, float]

RESPONSES: list[Prefix] = list(itertools.product(range(NUM_TOKENS), repeat=HORIZON))
STATES: list[Prefix] = [
    p for n in range(HORIZON) for p in itertools.product(range(NUM_TOKENS), repeat=n)
]


def random_table(seed: int, *, spread: float = 2.0) -> Table:
    """A row for every state and, since a model has logits there too, for every finished
    response."""
    generator = np.random.default_rng(seed)
    return {prefix: generator.normal(size=NUM_TOKENS) * spread for prefix in STATES + RESPONSES}


def random_values(seed: int, prefixes: list[Prefix]) -> Values:
    generator = np.random.default_rng(seed)
    return {prefix: float(generator.normal() * 2) for prefix in prefixes}


def log_softmax(logits: Table, temperature: float = 1.0) -> Table:
    return {s: row / temperature - oracle.logsumexp(row / temperature) for s, row in logits.items()}


def total(rewards: Table, response: Prefix) -> float:
    """A response's return, undiscounted."""
    return float(sum(rewards[response[:t]][token] for t, token in enumerate(response)))


def backward(
    rewards: Table, of_row: Callable[[np.ndarray, Prefix], float], log_prior: Table | None = None
) -> Table:
    """Q(s, a) = r(s, a) + prior(s, a) + V(s'), V(s) = of_row(Q(s, .), s), V = 0 past the
    horizon."""
    value: Values = {}
    q: Table = {}
    for state in reversed(STATES):
        q[state] = rewards[state] + np.array(
            [value.get((*state, a), 0.0) for a in range(NUM_TOKENS)]
        )
        if log_prior is not None:
            q[state] = q[state] + log_prior[state]
        value[state] = of_row(q[state], state)
    return q


def best_q(rewards: Table) -> Table:
    return backward(rewards, lambda row, _: float(row.max()))


def soft_q(rewards: Table, alpha: float, log_prior: Table | None = None) -> Table:
    """Of the return plus alpha times the entropy; with `log_prior`, less alpha times the KL from
    that policy."""
    prior = None if log_prior is None else {s: alpha * row for s, row in log_prior.items()}
    return backward(rewards, lambda row, _: soft_value(row, alpha), prior)


def soft_value(row: np.ndarray, alpha: float) -> float:
    return alpha * float(oracle.logsumexp(row / alpha))


def greedy(rewards: Table) -> dict[Prefix, int]:
    return {state: int(row.argmax()) for state, row in best_q(rewards).items()}


def outputs_of(logits: Table, response: Prefix, temperature: float) -> Outputs:
    """What the model layer would give for the response."""
    rows = np.array([logits[response[:t]] for t in range(len(response) + 1)])
    chosen = rows[np.arange(len(response)), list(response)].astype(np.float32)
    return Outputs(
        chosen=chosen, lse={temperature: oracle.logsumexp(rows / temperature).astype(np.float32)}
    )


def sample_of(response: Prefix) -> Sample:
    return sample_of_ids(
        np.array([0]),
        np.array(response),
        terminal=True,
        keep=np.ones(len(response), dtype=np.bool_),
    )


def rewards_of(score: Callable[[Prefix], Signals]) -> Table:
    """r(s, a) for the whole tree. A token's value may depend on the state and the token, not on
    what follows."""
    by_prefix: dict[Prefix, list[float]] = {}
    for response in RESPONSES:
        values: Any = score(response).values
        for t in range(HORIZON):
            by_prefix.setdefault(response[: t + 1], []).append(float(values[t]))
    for same in by_prefix.values():
        assert np.ptp(same) == 0.0
    return {s: np.array([by_prefix[*s, a][0] for a in range(NUM_TOKENS)]) for s in STATES}


def endogenous_rewards(logits: Table, **options: Any) -> Table:
    """Of a language model with these logits."""
    scorer, chosen = endogenous.Scorer(), endogenous.Scorer.Options(**options)
    return rewards_of(
        lambda response: scorer.score(
            sample_of(response), [outputs_of(logits, response, chosen.softness)], chosen
        )
    )


def assert_same_policy(ours: Table, theirs: Table, alpha: float) -> None:
    """softmax(Q / alpha) of both."""
    one, other = log_softmax(ours, alpha), log_softmax(theirs, alpha)
    for state in STATES:
        np.testing.assert_allclose(np.exp(one[state]), np.exp(other[state]), atol=1e-5)


def policies_differ(ours: Table, theirs: Table, alpha: float) -> bool:
    one, other = log_softmax(ours, alpha), log_softmax(theirs, alpha)
    return max(float(np.abs(np.exp(one[s]) - np.exp(other[s])).max()) for s in STATES) > 0.1
