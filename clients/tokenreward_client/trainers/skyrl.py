"""SkyRL (0.4): a generator whose rewards are one per token, `list[list[float]]`.

It imports nothing of SkyRL: the class is mixed into SkyRL's generator. Of the estimators, `gae` and
`reinforce++` take the vector; `grpo`, `rloo` and `maxrl` sum it first, and SkyRL's zero-variance
filter passes over it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers._answers import refuse_images
from tokenreward_client.trainers._token_reward import TokenReward

Generator: Any = object  # SkyRL's class, which the mixin stands before


class DenseGenerator(Generator):  # type: ignore[misc]  # SkyRL is not there when types are checked
    """Puts the service's rewards in the place of the environment's.

        class TokenGenerator(DenseGenerator, SkyRLGymGenerator):
            reward = TokenReward(AsyncClient(url), "attention_dense")

        class Exp(BasePPOExp):
            def get_generator(self, cfg, tokenizer, inference_engine_client):
                return TokenGenerator(...)

    A batch is scored in one call, once it is generated. An evaluation keeps the environment's
    rewards. With `outcome_weight`, the environment's number is added on the last token that the
    policy wrote. With `by="spans"` the prompt goes as the messages of the batch.
    """

    reward: TokenReward
    outcome_weight: float = 0.0

    async def generate(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Generate, then score.

        Raises:
            BadArgument: Trajectories are cut into steps, of which SkyRL reads only the last reward;
                or there are images.
        """
        output = await super().generate(input_batch, *args, **kwargs)
        metadata = input_batch.get("batch_metadata")
        if metadata is not None and metadata.training_phase == "eval":
            return output
        if output.get("is_last_step") is not None:
            raise BadArgument("one reward per token needs `step_wise_trajectories=false`")
        refuse_images(output.get("pixel_values") is not None)
        self.reward.tokenizer = self.reward.tokenizer or self.tokenizer
        prompts = output["prompt_token_ids"]
        if self.reward.by == "spans":
            prompts = input_batch["prompts"]
        rows = list(zip(prompts, output["response_ids"], output["loss_masks"], strict=True))
        vectors = await self.reward([self.reward.item(*row) for row in rows])
        rewards = []
        for vector, (_, _, mask), outcome in zip(vectors, rows, output["rewards"], strict=True):
            row = vector.tolist()
            if self.outcome_weight and any(mask):
                last = max(place for place, flag in enumerate(mask) if flag)
                # An environment gives a number, or one per token.
                row[last] += self.outcome_weight * float(np.sum(outcome))
            rewards.append(row)
        return {**output, "rewards": rewards}
