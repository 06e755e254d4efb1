"""rllm's own types and its collector of precomputed advantages, with ours.

It runs from the checkout that `RLLM_CHECKOUT` names.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fakes import published
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers.rllm import set_advantages

CHECKOUT = published.checkout("rllm")
PROMPT, RESPONSES = [5, 6, 7, 8], [[9, 10, 11, 12, 13], [14, 15, 16]]


@pytest.fixture(scope="module")
def kinds() -> Iterator[Any]:
    with published.importable(CHECKOUT):
        from rllm import types

        yield types


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def episode_of(kinds: Any, **changes: Any) -> Any:
    steps = [
        kinds.Step(**{"prompt_ids": PROMPT, "response_ids": response, **changes})
        for response in RESPONSES
    ]
    return kinds.Episode(trajectories=[kinds.Trajectory(name="solver", steps=steps)])


async def test_rllm_collects_the_advantages_as_they_are(
    kinds: Any, asking: AsyncClient, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    episode = episode_of(kinds)
    await set_advantages(TokenReward(asking, "attention_dense"), episode, gamma=0.5, scale=2.0)
    collect = published.definition(
        CHECKOUT / "rllm/trainer/algorithms/advantage.py",
        "_collect_precomputed_advantages",
        logger=logging.getLogger("rllm"),
    )
    values = collect(SimpleNamespace(trajectories=episode.trajectories), "solver")
    assert caplog.text == ""  # it warns where it puts zeros
    native = client.score([(PROMPT, response) for response in RESPONSES], "attention_dense")
    expected = []
    for answer in native:
        later, row = 0.0, []
        for reward in answer.rewards[::-1].astype(float):
            later = reward + 0.5 * later
            row.append(2.0 * later)
        expected += row[::-1]
    np.testing.assert_allclose(values, expected, atol=1e-5)


async def test_a_step_without_ids_is_refused(kinds: Any) -> None:
    episode = episode_of(kinds, prompt_ids=[])
    with pytest.raises(BadArgument, match="step 0 of the episode has no ids"):
        await set_advantages(TokenReward(AsyncClient("http://x")), episode)
