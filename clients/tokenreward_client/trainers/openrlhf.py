"""OpenRLHF (0.11): a reward function for `--reward.remote_url my_reward.py`.

It imports nothing of OpenRLHF. There is no way for a vector: `compute_reward` puts one number on
the last token, whatever the estimator. Without a file of one's own, `/get_reward` gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenreward_client.client import Client
from tokenreward_client.errors import BadArgument
from tokenreward_client.trainers._answers import check_one_reward


def reward_function(
    client: Client, scorer: str | None = None, **settings: Any
) -> Callable[..., dict[str, Any]]:
    """The function `reward_func` that OpenRLHF loads from a file:

        reward_func = reward_function(Client(url), "reward_model")

    OpenRLHF calls it in a thread with one response at a time. If it raises, OpenRLHF logs that at
    the level INFO and goes on without a reward, which then ends the step. It never gives a number
    in the place of one.

    Args:
        client: Asks the service.
        scorer: The scorer's name, `endogenous` by default.
        **settings: Other keywords of `client.score`: `options`, `credit`, `timeout_s`, ...

    Raises:
        BadArgument: The settings ask for several rewards, or let errors of items pass.
    """
    check_one_reward(settings)

    def reward_func(
        queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **_: Any
    ) -> dict[str, Any]:
        items = []
        for query, prompt in zip(queries, prompts, strict=True):
            if not query.startswith(prompt):
                raise BadArgument("a query must begin with its prompt: the response follows it")
            items.append((prompt, query.removeprefix(prompt)))
        answers = client.score(items, scorer, **settings)
        scores = [answer.score for answer in answers]
        if None in scores:
            raise BadArgument("the scorer gives no score, and OpenRLHF takes nothing else")
        versions = [answer.version or 0 for answer in answers]
        return {"rewards": scores, "scores": scores, "extra_logs": {"version": versions}}

    return reward_func
