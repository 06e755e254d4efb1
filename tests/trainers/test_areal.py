"""AReaL's own wrapper of reward functions with ours, and its workflow's method with our mixin."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import published
from tokenreward_client import AsyncClient, BadArgument, Client, ClientError
from tokenreward_client.trainers.areal import RewardFunction, ScoredWorkflow

SITE = published.site()
PROMPT, RESPONSE = [5, 6, 7, 8], [9, 10, 11, 12, 13]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def wrapper() -> Iterator[Any]:
    """AReaL's class, from its file alone: its package wants more than it does."""
    stand_ins = {
        "areal": published.stand_in("areal"),
        "areal__utils": published.stand_in("areal.utils", logging=logging),
    }
    module = published.loaded(SITE / "areal/api/reward_api.py", "reward_api", **stand_ins)
    yield module.AsyncRewardWrapper
    module.AsyncRewardWrapper._atexit_shutdown_all()


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def native(client: Client) -> float:
    [answer] = client.score([(PROMPT, RESPONSE)], "reward_model")
    assert answer.score is not None
    return answer.score


async def test_the_pool_of_processes_gives_the_native_score(
    wrapper: Any, url: str, client: Client
) -> None:
    function = wrapper(RewardFunction(url, "reward_model"), max_workers=1)
    reward = await function("a prompt", "a text", PROMPT, RESPONSE, answer="42")
    assert reward == pytest.approx(native(client), abs=1e-6)


async def test_without_a_service_it_raises_and_gives_no_0(wrapper: Any) -> None:
    function = wrapper(
        RewardFunction(NOBODY, "reward_model", timeout_s=0.5), max_workers=1, max_retries=1
    )
    with pytest.raises(ClientError):
        await function("a prompt", "a text", PROMPT, RESPONSE)


async def test_a_function_of_their_own_that_is_late_becomes_a_0(wrapper: Any) -> None:
    """Why ours does not go to the pool's limit, and why `ScoredWorkflow` does without the pool."""
    import time

    function = wrapper(time.sleep, timeout_seconds=0.2, max_workers=1, max_retries=0)
    assert await function(1.0) == 0


def test_a_limit_beyond_theirs_is_refused() -> None:
    with pytest.raises(BadArgument, match="gives 0 after 15 seconds"):
        RewardFunction(NOBODY, timeout_s=15.0)


async def test_the_workflow_asks_by_ids_in_its_own_loop(
    asking: AsyncClient, client: Client
) -> None:
    class Workflow:
        async def _compute_rewards(self, resp: Any, prompt_str: str, task_data: Any) -> float:
            raise AssertionError("the pool is not asked")

        async def sample(self, resp: Any) -> float:
            return await self._compute_rewards(resp, "a prompt", {})

    class Scored(ScoredWorkflow, Workflow):
        pass

    Scored.client, Scored.scorer = asking, "reward_model"
    response = SimpleNamespace(input_tokens=PROMPT, output_tokens=RESPONSE)
    assert await Scored().sample(response) == pytest.approx(native(client), abs=1e-6)


def test_the_method_of_the_mixin_is_theirs_by_name_and_arguments() -> None:
    method = published.definition(
        SITE / "areal/workflow/rlvr.py",
        "RLVRWorkflow._compute_rewards",
        trace_session=lambda name: lambda function: function,
    )
    ours = ScoredWorkflow._compute_rewards.__code__
    assert method.__code__.co_varnames[:4] == ours.co_varnames[:4]
