"""verl (0.9): an agent loop whose output has one reward per token, a reward manager that does the
same where the reward model shares the GPUs, and a score function. The first two are mixed into
verl's classes, and nothing of verl is imported. Of the estimators, `gae` and `reinforce_plus_plus`
take the vector; `grpo`, `rloo` and their like sum it first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tokenreward_client.client import AsyncClient
from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers._answers import check_one_reward, refuse_images
from tokenreward_client.trainers._token_reward import TokenReward
from tokenreward_client.trainers._verl_output import with_rewards

Loop: Any = object  # verl's classes, which the mixins stand before


class DenseAgentLoop(Loop):  # type: ignore[misc]  # verl is not there when types are checked
    """Gives verl's trainer one reward per token.

        class DenseLoop(DenseAgentLoop, SingleTurnAgentLoop):
            reward = TokenReward(AsyncClient(url), "attention_dense")

    The output's `as_dict` writes them to `rm_scores`, from where the v1 trainer takes
    `token_level_scores`. Because the output has a `reward_score`, their sum, verl runs no reward
    function. With `by="spans"` the prompt goes as messages (`raw_prompt`).
    """

    reward: TokenReward

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the loop, then score what it wrote.

        Raises:
            BadArgument: The trainer is the one before v1, which keeps only the sum; or there are
                images.
        """
        if not self.config.trainer.use_v1:
            raise BadArgument("one reward per token needs `trainer.use_v1=True`")
        result = await super().run(*args, **kwargs)
        outputs = result if isinstance(result, list) else [result]
        self.reward.tokenizer = self.reward.tokenizer or self.tokenizer
        items = []
        for output in outputs:
            refuse_images(any((output.multi_modal_data or {}).values()))
            prompt = output.prompt_ids
            if self.reward.by == "spans":
                prompt = list(kwargs["raw_prompt"])
            items.append(self.reward.item(prompt, output.response_ids, output.response_mask))
        vectors = await self.reward(items)
        dense = [with_rewards(*pair) for pair in zip(outputs, vectors, strict=True)]
        return dense if isinstance(result, list) else dense[0]


class DenseRewardManager(Loop):  # type: ignore[misc]  # as above
    """Writes one reward per token where verl computes rewards after the rollout: with a reward
    model and no pool of its own (`enable_resource_pool=False`). In another mode verl fails on them.

        class Manager(DenseRewardManager, RewardManagerBase):
            reward = TokenReward(AsyncClient(url), "attention_dense")
    """

    reward: TokenReward

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The rewards of one response, in the place of verl's single number.

        The trainer before v1 says in `response_mask` what tools wrote. The v1 trainer does not.
        """
        sample = data[0]
        prompts, responses = sample.batch["prompts"], sample.batch["responses"]
        is_there = sample.batch["attention_mask"].bool()
        prompt, response = prompts[is_there[: len(prompts)]], responses[is_there[len(prompts) :]]
        self.reward.tokenizer = self.reward.tokenizer or self.tokenizer
        messages = list(sample.non_tensor_batch["raw_prompt"])
        prompt_part = messages if self.reward.by == "spans" else prompt.tolist()
        mask = sample.batch.get("response_mask", None)
        flags = None if mask is None else mask[is_there[len(prompts) :]].tolist()
        [rewards] = await self.reward([self.reward.item(prompt_part, response.tolist(), flags)])
        return {"reward_score": rewards, "reward_extra_info": {}}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[Any]) -> Any:
        """`rm_scores` float32 [batch, response], padded with 0 on the right."""
        rm_scores = data.batch["responses"].float().zero_()
        for row, rewards in zip(rm_scores, scores, strict=True):
            row[: len(rewards)] = row.new_tensor(rewards.tolist())
        return rm_scores


def score_function(
    client: AsyncClient, scorer: str | None = None, *, prompt: str = "prompt", **settings: Any
) -> Callable[..., Awaitable[float]]:
    """A function for `reward.custom_reward_function`: one score per response.

        compute_score = score_function(AsyncClient(url), "reward_model")

    verl hands it the response's text alone, so the dataset's `extra_info` must have the prompt
    under the key `prompt`. `settings` are keywords of `client.score`. Raises BadArgument if they
    ask for several rewards, or let errors of items pass.
    """
    check_one_reward(settings)

    async def compute_score(
        data_source: Any, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any
    ) -> float:
        if prompt not in (extra_info or {}):
            raise BadArgument(f"the dataset's `extra_info` has no `{prompt}`: a scorer reads it")
        item = {"prompt": extra_info[prompt], "response": solution_str}
        [answer] = await client.score([item], scorer, **settings)
        if answer.score is None:
            raise BadArgument("the scorer gives no score, and verl takes nothing else here")
        return answer.score

    return compute_score
