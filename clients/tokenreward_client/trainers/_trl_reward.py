"""CompletionReward: one number per completion, as TRL's reward functions give it.

It knows the arguments of TRL's reward functions, and imports nothing of TRL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args

from tokenreward_client.client import AsyncClient, Client
from tokenreward_client.errors import BadArgument
from tokenreward_client.options import DEFAULT_SCORER
from tokenreward_client.rewards import Rewards
from tokenreward_client.trainers._answers import (
    OnError,
    call_settings,
    check_settings,
    in_places,
    sendable,
)

Value = Literal["score", "sum", "mean"]


class CompletionReward:
    """A reward function for TRL's GRPOTrainer and RLOOTrainer.

        reward = reward_func(AsyncClient(url), scorer="reward_model", on_error="none")
        trainer = GRPOTrainer(model, reward_funcs=[reward], args=args, train_dataset=dataset)

    Prompts and completions go as the texts or messages that TRL hands over, in the tokens of the
    scorer. Of a completion of several messages (tool calls) the last is judged, and those before it
    are part of the prompt. It may be pickled, as the client may.

    Args:
        client: Of either kind.
        scorer: The scorer's name, `endogenous` by default. TRL logs the rewards under it.
        value: What a completion earns: its `score`, or the `sum` or `mean` of its tokens' rewards,
            which have the credit rule and the KL penalty in them.
        on_error: "raise" ends the step with the error of the first completion that has no reward.
            "none" gives None for it, which TRL leaves out of the group's mean and gives no
            advantage; how many is logged as `rewards/NAME/missing`. A service that answers no item
            of a batch is an error either way.
        columns: Fields of the item by the dataset's column that has them: `{"score": "grade"}`.
        end_ids: The ids that end a turn. With them, a completion that was cut off is judged
            without an end-of-turn; by default every completion gets one.
        **settings: The other keywords of `client.score`: `options`, `credit`, `timeout_s`, ...

    Raises:
        BadArgument: An argument is none of the above.
    """

    def __init__(
        self,
        client: Client | AsyncClient,
        scorer: str | None = None,
        *,
        value: Value = "score",
        on_error: OnError = "raise",
        columns: Mapping[str, str] | None = None,
        end_ids: Collection[int] | None = None,
        **settings: Any,
    ) -> None:
        check_settings(settings, on_error)
        if value not in get_args(Value):
            raise BadArgument(f"must be one of {get_args(Value)}, got {value!r}", param="value")
        self._client, self._scorer, self._settings = client, scorer, settings
        self._value, self._on_error = value, on_error
        self._columns, self._end_ids = dict(columns or {}), end_ids
        self.__name__ = scorer or "_".join(settings.get("scorers") or [DEFAULT_SCORER])

    async def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """The reward of each completion, None for one that has none. `columns`: what else TRL
        passes, each a list with an entry per completion, or something of the trainer's."""
        pairs = zip(prompts, completions, strict=True)
        items = [self._item(index, *pair, columns) for index, pair in enumerate(pairs)]
        good = sendable(items, self._on_error)
        settings = call_settings(self._settings, self._on_error)
        if isinstance(self._client, AsyncClient):
            answers = await self._client.score(list(good.values()), self._scorer, **settings)
        else:  # in a thread: the trainer's other reward functions share this event loop
            answers = await asyncio.to_thread(
                self._client.score, list(good.values()), self._scorer, **settings
            )
        batch = in_places(answers, list(good), len(items))
        if "log_metric" in columns:
            columns["log_metric"](f"rewards/{self.__name__}/missing", float(batch.count(None)))
        return [None if answer is None else self._number(answer) for answer in batch]

    def _item(
        self, index: int, prompt: Any, completion: Any, columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        item = {field: columns[column][index] for field, column in self._columns.items()}
        item |= {"prompt": prompt, "response": completion}
        if isinstance(completion, list):
            *turns, response = completion or [None]
            item |= {"prompt": [*prompt, *turns], "response": response}
        if self._end_ids is not None:
            item["finished"] = columns["completion_ids"][index][-1:] in [[i] for i in self._end_ids]
        return item

    def _number(self, answer: Rewards) -> float:
        if self._value == "score":
            if answer.score is None:
                raise BadArgument("the scorer gives no score: ask for `sum` or `mean`")
            return answer.score
        assert answer.rewards is not None  # one scorer, or several combined
        rewards = answer.rewards.astype(float)
        return float(rewards.sum()) / (len(rewards) if self._value == "mean" else 1)
