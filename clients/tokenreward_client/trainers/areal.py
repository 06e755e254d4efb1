"""AReaL (1.0): a score per response that is never a silent 0.

AReaL runs a `reward_fn` in a pool of processes, and gives 0 for one that has no answer 15 seconds
after it was queued. Four tries change nothing while the pool is busy. `ScoredWorkflow` asks in the
workflow's own event loop instead: no pool, no limit but `timeout_s`, and an error is an error.
`RewardFunction` is for workflows that take nothing else; it raises while AReaL still listens.

It imports nothing of AReaL. There is no way for a vector: the actor adds one number on the last
token, and GAE spreads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenreward_client.client import AsyncClient, Client
from tokenreward_client.errors import BadArgument
from tokenreward_client.rewards import Rewards
from tokenreward_client.trainers._answers import check_one_reward, refuse_images

Workflow: Any = object  # AReaL's class, which the mixin stands before
# AReaL waits 15 seconds, part of which a call may wait in the pool's queue.
PATIENCE_S = 10.0

_client = lru_cache(Client)  # a process of the pool unpickles the function with each call


class ScoredWorkflow(Workflow):  # type: ignore[misc]  # AReaL is not there when types are checked
    """Asks the service for a response's reward, by ids.

        class Scored(ScoredWorkflow, RLVRWorkflow):
            client, scorer = AsyncClient(url), "reward_model"

    AReaL wants a `reward_fn` for the constructor, which is not called. `settings` are other
    keywords of `client.score`; `fingerprint` has the ids compared with the scorer's vocabulary.
    """

    client: AsyncClient
    scorer: str | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012 - a subclass replaces it whole

    async def _compute_rewards(self, resp: Any, prompt_str: str, task_data: Any) -> float:
        check_one_reward(self.settings)
        refuse_images(bool(task_data.get("images")))
        item = {"prompt": resp.input_tokens, "response": resp.output_tokens}
        [answer] = await self.client.score([item], self.scorer, **self.settings)
        return _score(answer)


class RewardFunction:
    """A `reward_fn`, which pickles:

        reward_fn = RewardFunction("http://127.0.0.1:8000", "reward_model")

    It raises what the client raises. AReaL tries three times more, and then ends the episode.

    Args:
        url: The service. Each process of the pool has one client of it.
        scorer: The scorer's name, `endogenous` by default.
        api_key: The service's key, if it wants one.
        **settings: Other keywords of `client.score`: `options`, `credit`, ...
    """

    def __init__(
        self, url: str, scorer: str | None = None, *, api_key: str | None = None, **settings: Any
    ) -> None:
        check_one_reward(settings)
        if settings.setdefault("timeout_s", PATIENCE_S) >= 15.0:
            raise BadArgument("AReaL gives 0 after 15 seconds: ask for less", param="timeout_s")
        self._url, self._api_key = url, api_key
        self._scorer, self._settings = scorer, settings

    def __call__(
        self,
        prompt: str,
        completions: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        **_: Any,
    ) -> float:
        item = {"prompt": prompt_ids, "response": completion_ids}
        client = _client(self._url, api_key=self._api_key)
        [answer] = client.score([item], self._scorer, **self._settings)
        return _score(answer)


def _score(answer: Rewards) -> float:
    if answer.score is None:
        raise BadArgument("the scorer gives no score, and AReaL takes nothing else")
    return answer.score
