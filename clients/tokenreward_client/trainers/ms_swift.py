"""ms-swift (4.6): one advantage per token in its GRPO, from one reward per token.

It imports nothing of swift: the class is mixed into swift's GRPOTrainer, whose hook
`_postprocess_batch` writes the advantages [B, T] of each micro-batch. Log-probabilities of a
teacher need none of this: `--teacher_model_server` asks the service by URL.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers import _trl_batch as gathering
from tokenreward_client.trainers._advantages import dense_advantages
from tokenreward_client.trainers._answers import refuse_images
from tokenreward_client.trainers._token_reward import TokenReward, padded

Trainer: Any = object  # swift's class, which the mixin stands before


class DenseSwift(Trainer):  # type: ignore[misc]  # swift is not there when types are checked
    """Gives swift's GRPOTrainer one advantage per token, from one reward per token.

        class Dense(DenseSwift, GRPOTrainer):
            reward = TokenReward(AsyncClient(url), "attention_dense")
            dense = {"gamma": 1.0, "baseline": "position"}

        TrainerFactory.TRAINER_MAPPING["grpo"] = f"{__name__}.Dense"  # in an external plugin

    swift generates, runs its reward functions and writes its own advantages a [B, T], with the term
    of a teacher if there is one. Then the very ids are scored, and in their place stands

        A_it = D_it + outcome_weight a_it

    D are the `dense_advantages` of the rewards, 0 where the loss counts no token.

    Attributes:
        reward: Asks the service. With `by="spans"` the prompt goes as messages.
        dense: Keywords of `dense_advantages`. A group is `num_generations` samples, gathered from
            all processes as swift gathers its own rewards.
        outcome_weight: The share of swift's own advantages.
    """

    reward: TokenReward
    dense: Mapping[str, Any] = {}
    outcome_weight: float = 0.0
    _loop: asyncio.AbstractEventLoop | None = None

    def _postprocess_batch(
        self, samples: Sequence[Any], batch_encoded_inputs: Sequence[dict[str, Any]]
    ) -> None:
        self._refuse_other_shapes(samples)
        super()._postprocess_batch(samples, batch_encoded_inputs)
        batches = [inputs["grpo_batch"] for inputs in batch_encoded_inputs]
        like, masks, rewards = batches[0].advantages, [], []
        with gathering.raised_together(self.accelerator, like):
            items = [self._item(sample) for sample in samples]
            masks = [item.get("mask", [1] * len(item["response"])) for item in items]
            if self._loop is None:  # one for all steps, because the client's connections stay
                self._loop = asyncio.new_event_loop()
                weakref.finalize(self, self._loop.close)
            self.reward.tokenizer = self.reward.tokenizer or self.template.tokenizer
            rewards = self._loop.run_until_complete(self.reward(items))
        matrix, mask = padded(rewards, masks)
        all_rewards = gathering.gathered_rows(self.accelerator, like, matrix)
        all_masks = gathering.gathered_rows(self.accelerator, like, mask)
        size = self.num_generations if self.model.training else self.num_generations_eval
        advantages = dense_advantages(all_rewards, all_masks, num_generations=size, **self.dense)
        first = self.accelerator.process_index * len(samples)
        rows = iter(zip(advantages[first:], mask, strict=False))
        for batch in batches:
            own = self.outcome_weight * batch.advantages
            for row, is_counted in enumerate(batch.completion_mask.bool()):
                values, flags = next(rows)
                dense = values[: len(flags)][flags == 1]
                if len(dense) != int(is_counted.sum()):
                    raise BadArgument(f"{len(dense)} advantages for {int(is_counted.sum())} tokens")
                own[row, is_counted] += own.new_tensor(dense)
            batch.advantages = own

    def _item(self, sample: Any) -> dict[str, Any]:
        """A sample as swift encoded it: the response begins at the first token that the loss counts
        and ends with the last one, and what it leaves out between them is masked."""
        ids, mask = sample.encoded["input_ids"], [int(x != -100) for x in sample.encoded["labels"]]
        if 1 not in mask:
            raise BadArgument("a sample has no token that the loss counts")
        start, stop = mask.index(1), len(mask) - mask[::-1].index(1)
        prompt = sample.messages[:-1] if self.reward.by == "spans" else ids[:start]
        return self.reward.item(prompt, ids[start:stop], mask[start:stop])

    def _refuse_other_shapes(self, samples: Sequence[Any]) -> None:
        """Raises BadArgument where swift would average the vector, or cuts a batch otherwise."""
        averages = self.loss_type in ("real", "fipo") or self.use_liger_loss
        if averages or self.off_policy_sequence_mask_delta is not None:
            raise BadArgument("swift reads one advantage per response under this loss")
        if self.template.sequence_parallel_size > 1 or self.dynamic_num_samples:
            raise BadArgument("one advantage per token needs whole samples, as many as were asked")
        refuse_images(any(each.images or each.videos or each.audios for each in samples))
