"""TRL: a reward function for GRPO and RLOO, and per-token advantages for GRPO.

It touches TRL (1.16) only through the trainer that it is mixed into.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from tokenreward.alignment import fingerprint
from tokenreward_client.client import Client
from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers import _trl_batch as batch
from tokenreward_client.trainers._advantages import check_form, dense_advantages
from tokenreward_client.trainers._answers import OnError, check_settings, score_batch
from tokenreward_client.trainers._increments import names_of, require_increments
from tokenreward_client.trainers._trl_reward import CompletionReward

if TYPE_CHECKING:
    from trl import GRPOTrainer as Trainer
else:
    Trainer = object

reward_func = CompletionReward


class DenseGRPO(Trainer):  # type: ignore[misc]  # TRL is not there when types are checked
    """Gives TRL's GRPOTrainer one advantage per token, from one reward per token.

        class DenseTrainer(DenseGRPO, GRPOTrainer): ...

        trainer = DenseTrainer(
            model, reward_funcs=truth, args=args, train_dataset=dataset,
            client=Client(url), scorer="logprob", dense={"gamma": 1.0, "baseline": "position"})

    GRPOTrainer generates, runs its reward functions and computes an advantage a_i per completion.
    Then this class has the very ids scored and puts A [B, T] in the place of a [B]:

        A_it = D_it + outcome_weight m_it a_i

    D are the `dense_advantages` of the rewards (`_advantages` has the formulas), and m is the mask
    of what the policy wrote. `outcome_weight=1.0` with `dense={"centre": True}` keeps the sum of a
    completion's advantages, T_i a_i: the scorer then only says where in the completion it goes.
    Groups may be spread over processes: rewards are gathered, as TRL gathers its own. A completion
    without rewards has D = 0 and counts in no baseline; `mask_truncated_completions` makes such.

    TRL logs `dense/reward` and `dense/reward_std` (of the sums of completions), `dense/missing`
    (the share without rewards), `dense/token_reward` and `dense/advantage_std`.

    Args:
        *args, **kwargs: GRPOTrainer's own.
        client: Asks the service.
        scorer: The scorer's name, `endogenous` by default.
        score: Other keywords of `client.score`: `options`, `credit`, `scorers`, `combine`, ...
        dense: Keywords of `dense_advantages`: `gamma`, `baseline`, `scale`, `centre`.
        outcome_weight: As above.
        by: "ids" sends the policy's ids, which must be the scorer's own: the two vocabularies are
            compared. "spans" sends text and spans, for a scorer with another tokenizer.
        on_error: "raise" ends the step if a completion has no rewards, "none" goes on without.

    Raises:
        ClientError: An argument is wrong, the scorer gives levels, or there is no listing. A scorer
            that loads is waited for, for as long as the client's `timeout_s` says.
    """

    def __init__(
        self,
        *args: Any,
        client: Client,
        scorer: str | None = None,
        score: Mapping[str, Any] | None = None,
        dense: Mapping[str, Any] | None = None,
        outcome_weight: float = 0.0,
        by: Literal["ids", "spans"] = "ids",
        on_error: OnError = "raise",
        **kwargs: Any,
    ) -> None:
        # RLOO and others take a scalar per completion, and would broadcast a vector wrongly.
        if not any(kind.__name__.endswith("GRPOTrainer") for kind in type(self).__mro__):
            raise BadArgument("DenseGRPO goes before GRPOTrainer in the bases of a class")
        if by not in ("ids", "spans"):
            raise BadArgument(f'must be "ids" or "spans", got {by!r}', param="by")
        check_form(**(dense or {}))
        check_settings(score or {}, on_error)
        names = names_of(scorer, score or {})
        require_increments(client.scorers(wait_for=names), scorer, score or {})
        super().__init__(*args, **kwargs)
        processing: Any = self.processing_class  # of images and text, or the tokenizer itself
        self._text_tokenizer = getattr(processing, "tokenizer", processing)
        ids_of = fingerprint(self._text_tokenizer.get_vocab()) if by == "ids" else None
        settings = {"fingerprint": ids_of, **(score or {})}
        self._dense, self._outcome_weight, self._by = dict(dense or {}), outcome_weight, by
        self._score_items = partial(score_batch, client, scorer, settings, on_error=on_error)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        outcomes, mask = output["advantages"], batch.policy_mask(output)
        is_training = self.model.training
        size = self.num_generations if is_training else self.num_generations_eval
        with batch.raised_together(self.accelerator, outcomes):
            items = batch.items_of_ids(output)
            if self._by == "spans":
                prompts = [each["prompt"] for each in inputs]
                items = batch.items_of_text(output, prompts, self._text_tokenizer)
            rewards = batch.rewards_of(self._score_items(items), mask)
        all_rewards = batch.gathered_rows(self.accelerator, outcomes, rewards)
        all_masks = batch.gathered_rows(self.accelerator, outcomes, mask)
        advantages = dense_advantages(all_rewards, all_masks, num_generations=size, **self._dense)
        for name, value in batch.dense_metrics(all_rewards, all_masks, advantages).items():
            self._metrics["train" if is_training else "eval"][name].append(value)
        first = self.accelerator.process_index * len(mask)
        own = advantages[first : first + len(mask), : mask.shape[1]]
        own += self._outcome_weight * mask * outcomes.cpu().numpy()[:, None]
        output["advantages"] = outcomes.new_tensor(own)
        return output
