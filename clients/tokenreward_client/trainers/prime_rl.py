"""prime-rl (0.8): an algorithm that assigns one advantage per token that the policy sampled.

prime-rl has no path for an algorithm of one's own, so a launcher registers it (two lines, below).
Its `assign_advantages` is imported when it is called. Log-probabilities of a teacher need none of
this: `algo.type = "opd"` asks the service by URL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenreward_client.trainers._advantages import dense_advantages
from tokenreward_client.trainers._answers import refuse_images
from tokenreward_client.trainers._token_reward import TokenReward, padded

Algorithm: Any = object  # prime-rl's class, which the mixin stands before


class DenseAlgorithm(Algorithm):  # type: ignore[misc]  # prime-rl is not there for the type checker
    """Replaces the advantages that an algorithm of prime-rl assigned.

        class Dense(DenseAlgorithm, GRPOAlgorithm):
            reward = TokenReward(AsyncClient(url), "attention_dense")
            dense = {"gamma": 1.0, "baseline": "position"}

        ALGORITHM_CLASSES["grpo"] = Dense  # before `orchestrate(config)`, with algo.type = "grpo"

    The algorithm runs first, and only traces are scored to which it assigned something. With
    `outcome_weight`, its advantages are added to ours. A message that is on several branches of a
    trace keeps the rewards of the first.

    Attributes:
        reward: Asks the service by ids.
        dense: Keywords of `dense_advantages`. A group is the traces of the episodes.
        outcome_weight: The share of the algorithm's own advantages.
    """

    reward: TokenReward
    dense: Mapping[str, Any] = {}
    outcome_weight: float = 0.0

    async def score_group(self, episodes: Sequence[Any]) -> None:
        """Assign advantages to a cohort of episodes."""
        from prime_rl.orchestrator.algo.routing import assign_advantages

        await super().score_group(episodes)
        traces = []
        for episode in episodes:
            traces += [trace for trace in episode.traces if _outcomes(trace)]
        branches = [branch for trace in traces for branch in _sampled_branches(trace)]
        items = []
        for branch in branches:
            refuse_images(any(branch.mm_token_type_ids or []))
            mask, ids = branch.sampled_mask, branch.token_ids
            start = mask.index(True)
            items.append(self.reward.item(ids[:start], ids[start:], mask[start:]))
        vectors = iter(await self.reward(items))
        rewards = []
        for trace in traces:
            by_node: dict[int, list[float]] = {}
            for branch in _sampled_branches(trace):
                vector = next(vectors)
                padding = np.zeros(len(branch.token_ids) - len(vector))
                _note_nodes(by_node, branch, np.concatenate((padding, vector)))
            values = [by_node[id(node)] for node in trace.nodes if any(node.mask)]
            rewards.append(np.concatenate(values))
        matrix, mask = padded(rewards, [[1] * len(row) for row in rewards])
        advantages = dense_advantages(
            matrix, mask, num_generations=max(len(traces), 1), **self.dense
        )
        for trace, row in zip(traces, advantages, strict=True):
            outcomes = np.asarray(_outcomes(trace))
            own = row[: len(outcomes)] + self.outcome_weight * outcomes
            assign_advantages(trace, own.tolist())


def _sampled_branches(trace: Any) -> list[Any]:
    return [branch for branch in trace.branches if any(branch.sampled_mask)]


def _outcomes(trace: Any) -> list[float]:
    """The advantages that are assigned, in the order of the sampled tokens; empty if none is."""
    return [value for node in trace.nodes for value in node.advantages or []]


def _note_nodes(by_node: dict[int, list[float]], branch: Any, rewards: Any) -> None:
    """Keep the rewards of the sampled tokens of each message, unless another branch had it."""
    offset = 0
    for node in branch.nodes:
        end = offset + len(node.token_ids)
        pairs = zip(rewards[offset:end], node.mask, strict=True)
        by_node.setdefault(id(node), [float(value) for value, flag in pairs if flag])
        offset = end
