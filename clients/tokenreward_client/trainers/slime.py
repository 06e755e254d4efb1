"""slime (0.3): its three hooks, which carry one advantage per token from the rollout to the loss.

slime and torch are imported when a hook of theirs runs. `--advantage-estimator` does nothing here:
the third hook takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers._advantages import check_form, dense_advantages
from tokenreward_client.trainers._answers import refuse_images
from tokenreward_client.trainers._token_reward import TokenReward, padded


class DenseHooks:
    """The functions for `--custom-rm-path`, `--custom-reward-post-process-path` and
    `--custom-advantage-function-path`.

        hooks = DenseHooks(TokenReward(AsyncClient(url), "attention_dense", tokenizer=tokenizer))
        rm, post_process, advantage = hooks.rm, hooks.post_process, hooks.advantage

    With these lines in `dense.py` on the path, and `--reward-key score`, they are `dense.rm`,
    `dense.post_process` and `dense.advantage`. slime logs the score as the reward.

    Args:
        reward: Asks the service. Ids go as the rollout has them; with `by="spans"` the prompt goes
            as slime has it, text or messages.
        dense: Keywords of `dense_advantages`: `gamma`, `baseline`, `scale`, `centre`. A group is
            `--n-samples-per-prompt` samples, and slime's own normalisation is not applied.
    """

    def __init__(self, reward: TokenReward, dense: Mapping[str, Any] | None = None) -> None:
        check_form(**(dense or {}))
        self._reward, self._dense = reward, dict(dense or {})

    async def rm(self, args: Any, sample: Any, **_: Any) -> Any:
        """Score a sample, or a list of them: `{"score", "token_rewards"}` for each.

        `score` is the scorer's, or the sum of the rewards if it has none. Raises ClientError, also
        where a sample has images.
        """
        samples = sample if isinstance(sample, list) else [sample]
        items = []
        for each in samples:
            refuse_images(any((each.multimodal_inputs or {}).values()))
            start = len(each.tokens) - each.response_length
            prompt = each.prompt if self._reward.by == "spans" else each.tokens[:start]
            items.append(self._reward.item(prompt, each.tokens[start:], each.loss_mask))
        replies = []
        for answer in await self._reward.answers(items):
            assert answer.rewards is not None  # one scorer, or several combined
            score = answer.score
            if score is None:
                score = float(answer.rewards.sum(dtype=float))
            replies.append({"score": score, "token_rewards": answer.rewards.tolist()})
        return replies if isinstance(sample, list) else replies[0]

    def post_process(self, args: Any, samples: Sequence[Any], **_: Any) -> tuple[list[Any], Any]:
        """The scores, which slime logs, and the advantages of each sample's tokens as a float32
        tensor [response_length]. They travel under slime's name `rewards`.

        Raises:
            BadArgument: The samples are no whole groups, or one has no rewards.
        """
        import torch

        size = args.n_samples_per_prompt
        groups = [sample.group_index for sample in samples[::size]]
        if len(samples) % size or [s.group_index for s in samples] != sorted(groups * size):
            raise BadArgument(f"the samples are no whole groups of {size}, one after another")
        masks = []
        for sample in samples:
            if len(sample.reward["token_rewards"]) != sample.response_length:
                raise BadArgument(f"sample {sample.index} has no reward for each of its tokens")
            flags = sample.loss_mask or [1] * sample.response_length
            # slime takes these out of its loss, and so they count in no group's mean.
            masks.append([0] * len(flags) if sample.remove_sample else flags)
        rewards, mask = padded([sample.reward["token_rewards"] for sample in samples], masks)
        advantages = dense_advantages(rewards, mask, num_generations=size, **self._dense)
        rows = zip(advantages, samples, strict=True)
        tensors = [
            torch.tensor(row[: each.response_length], dtype=torch.float32) for row, each in rows
        ]
        return [sample.reward["score"] for sample in samples], tensors

    def advantage(self, args: Any, rollout_data: dict[str, Any]) -> None:
        """Set `advantages` and `returns`: what travelled, on the device of the loss.

        With context parallelism a rank keeps its own two chunks of a response, as slime cuts its
        log-probabilities.
        """
        from slime.backends.megatron_utils.cp_utils import slice_log_prob_with_cp

        lengths = zip(rollout_data["total_lengths"], rollout_data["response_lengths"], strict=True)
        advantages = []
        rows = zip(rollout_data["rewards"], rollout_data["kl"], lengths, strict=True)
        for row, like, (total, response) in rows:
            own = slice_log_prob_with_cp(row, total, response).to(like.device)
            if own.shape != like.shape:
                raise BadArgument(f"{len(own)} advantages for {len(like)} tokens of this rank")
            advantages.append(own)
        rollout_data["advantages"] = advantages
        rollout_data["returns"] = list(advantages)
