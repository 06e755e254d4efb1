"""rllm (0.3): one advantage per token on the steps of a workflow, for `use_precomputed_advantage`.

It imports nothing of rllm. Only the Tinker backend takes the vector: the verl backend raises on a
list, and the Fireworks backend gives all tokens the value of the first.
"""

from __future__ import annotations

from typing import Any

from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers._advantages import check_form, dense_advantages
from tokenreward_client.trainers._token_reward import TokenReward, padded


async def set_advantages(
    reward: TokenReward, episode: Any, *, gamma: float = 1.0, scale: float = 1.0
) -> None:
    """Set `step.advantage` of each step of an episode, at the end of a workflow's `run`.

        reward = TokenReward(AsyncClient(url), "attention_dense")

        class Dense(MyWorkflow):
            async def run(self, task, uid, **kwargs):
                episode = await super().run(task, uid, **kwargs)
                await set_advantages(reward, episode)
                return episode

    The advantage of a token is the discounted sum of the rewards from it to the end of its step,
    times `scale`. A workflow sees one episode, so no baseline of a group is taken off: a scorer
    whose rewards are all of one sign (log-probabilities) then pays for length, or against it.

    Args:
        reward: Asks the service by ids: `step.prompt_ids` and `step.response_ids`.
        episode: rllm's `Episode`.
        gamma: The discount, in [0, 1].
        scale: What advantages are multiplied with.

    Raises:
        BadArgument: A step has no ids: rllm would give it zeros, with a warning.
        ClientError: A step has no rewards.
    """
    check_form(gamma=gamma)
    steps = [step for trajectory in episode.trajectories for step in trajectory.steps]
    for index, step in enumerate(steps):
        if not step.prompt_ids or not step.response_ids:
            raise BadArgument(f"step {index} of the episode has no ids of prompt and response")
    vectors = await reward([reward.item(step.prompt_ids, step.response_ids) for step in steps])
    rewards, mask = padded(vectors, [[1] * len(vector) for vector in vectors])
    advantages = scale * dense_advantages(
        rewards, mask, num_generations=1, gamma=gamma, baseline="none", scale="none"
    )
    for step, row in zip(steps, advantages, strict=True):
        step.advantage = row[: len(step.response_ids)].tolist()
