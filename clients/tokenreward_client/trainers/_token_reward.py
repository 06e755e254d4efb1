"""TokenReward: what a trainer's hook asks for, one reward per token that the policy wrote.

It knows the client and spans, and no trainer. Levels and returns are refused before a reward is
given out, ids are compared with the scorer's vocabulary, and an item without rewards is an error:
trainers have no place for a reward that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tokenreward.alignment import fingerprint
from tokenreward_client.client import AsyncClient
from tokenreward_client.errors import BadArgument
from tokenreward_client.rewards import Rewards
from tokenreward_client.spans import text_and_spans
from tokenreward_client.trainers._answers import check_one_reward
from tokenreward_client.trainers._increments import names_of, require_increments

Floats = npt.NDArray[np.float32]


class TokenReward:
    """Asks for one reward per token, in the tokens of the policy.

        reward = TokenReward(AsyncClient(url), "attention_dense")
        [rewards] = await reward([reward.item(prompt_ids, response_ids)])  # float32 [tokens]

    Args:
        client: Asks the service.
        scorer: The scorer's name, `endogenous` by default.
        tokenizer: The policy's. With it, ids are refused that are not the scorer's own; without it
            they are trusted. `by="spans"` needs it. Hooks that hold the policy's tokenizer fill it
            in where it is None.
        by: "ids" sends the policy's ids. "spans" sends texts with a span per id, for a scorer with
            another tokenizer.
        **settings: Other keywords of `client.score`: `options`, `credit`, `timeout_s`, ...

    Raises:
        BadArgument: An argument is wrong, or failed items would be let pass.
    """

    def __init__(
        self,
        client: AsyncClient,
        scorer: str | None = None,
        *,
        tokenizer: Any = None,
        by: Literal["ids", "spans"] = "ids",
        **settings: Any,
    ) -> None:
        check_one_reward(settings)
        if by not in ("ids", "spans"):
            raise BadArgument(f'must be "ids" or "spans", got {by!r}', param="by")
        self.client, self.scorer, self.by = client, scorer, by
        self.tokenizer, self._settings = tokenizer, settings
        self._is_checked, self._own = False, ""

    def item(
        self, prompt: Any, response_ids: Sequence[int], mask: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """One response as an item.

        Args:
            prompt: The prompt's ids; with `by="spans"` its text or messages.
            response_ids: The ids of the response [n], without padding.
            mask: 1 for the ids that the policy wrote and the loss counts [n]; None for all.

        Raises:
            BadArgument: With `by="spans"`: the prompt is ids, there is no tokenizer, or part of the
                response is masked (the turns of tools).
            NotText: The ids do not decode to valid text.
        """
        flags = [int(bool(flag)) for flag in (mask if mask is not None else [])]
        is_masked = 0 in flags
        if self.by == "ids":
            item: dict[str, Any] = {"prompt": list(prompt), "response": list(response_ids)}
            return item | ({"mask": flags} if is_masked else {})
        if not isinstance(prompt, str) and not all(isinstance(each, Mapping) for each in prompt):
            raise BadArgument('by="spans" needs the prompt as text or messages, and not as ids')
        if is_masked and not any(flags):  # it may have been cut inside a character
            return {"prompt": prompt, "response": list(response_ids), "mask": flags}
        if is_masked:
            raise BadArgument('turns of tools can be scored by their ids alone: by="ids"')
        if self.tokenizer is None:
            raise BadArgument('by="spans" needs the tokenizer of the policy', param="tokenizer")
        text, spans, finished = text_and_spans(self.tokenizer, response_ids)
        return {"prompt": prompt, "response": text, "spans": spans, "finished": finished}

    async def answers(self, items: Sequence[dict[str, Any]]) -> list[Rewards]:
        """The answer for each item. Of masked tokens the rewards are 0.

        Raises:
            ClientError: The rewards must not be added up, or an item has none.
        """
        settings = dict(self._settings)
        if self.by == "ids" and self.tokenizer is not None:
            self._own = self._own or fingerprint(self.tokenizer.get_vocab())
            settings.setdefault("fingerprint", self._own)
        answers = await self.client.score(items, self.scorer, **settings)
        # Behind the answers: a deployment that still loads has loaded then, and is listed.
        if not self._is_checked:
            names = names_of(self.scorer, settings)
            listing = await self.client.scorers(wait_for=names)
            require_increments(listing, self.scorer, settings)
            self._is_checked = True
        return answers

    async def __call__(self, items: Sequence[dict[str, Any]]) -> list[Floats]:
        """The rewards of each item, float32 [n], as `answers` has them.

        An item that is masked whole is not sent, since the service has nothing to score there. A
        trainer that leaves truncated responses out of its loss (DAPO's overlong filter) makes such.
        """
        answers = iter(await self.answers([item for item in items if not _is_masked_whole(item)]))
        vectors = []
        for item in items:
            if _is_masked_whole(item):
                vectors.append(np.zeros(len(item["response"]), dtype=np.float32))
                continue
            vector = next(answers).rewards
            assert vector is not None  # one scorer, or several combined
            vectors.append(vector)
        return vectors


def _is_masked_whole(item: dict[str, Any]) -> bool:
    return "mask" in item and not any(item["mask"])


def padded(vectors: Sequence[Any], masks: Sequence[Any]) -> tuple[npt.NDArray[Any], Any]:
    """Vectors and masks of several lengths as float64 [B, T] and 0 or 1 [B, T], padded with 0 on
    the right."""
    shape = (len(vectors), max(map(len, vectors), default=0))
    rewards, mask = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for row, (vector, flags) in enumerate(zip(vectors, masks, strict=True)):
        rewards[row, : len(vector)] = vector
        mask[row, : len(flags)] = flags
    return rewards, mask
