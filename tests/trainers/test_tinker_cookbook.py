"""tinker-cookbook's own data of a trajectory, with our advantages."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from fakes import published
from tokenreward_client import AsyncClient, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers.tinker_cookbook import add_advantages

SITE = published.site()
MISSING = ("PIL", "blobfile", "chz", "jiter", "termcolor", "rich", "click", "zstandard")


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    with published.importable(SITE, missing=MISSING):
        yield importlib.import_module


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def data_of(module: Any, advantage: float) -> list[Any]:
    """Two turns, the second of which continues the first, as the cookbook makes them one datum."""
    tinker, types = module("tinker"), module("tinker_cookbook.rl.types")
    completers = module("tinker_cookbook.completers")
    turns = [([5, 6, 7], [8, 9]), ([5, 6, 7, 8, 9, 10, 11], [12, 13])]
    transitions = [
        types.Transition(
            ob=tinker.ModelInput.from_ints(prompt),
            ac=completers.TokensWithLogprobs(tokens=response, maybe_logprobs=[-1.0, -1.0]),
            reward=0.0,
            episode_done=False,
        )
        for prompt, response in turns
    ]
    trajectory = types.Trajectory(transitions=transitions, final_ob=tinker.ModelInput.empty())
    data: list[Any] = module("tinker_cookbook.rl.data_processing").trajectory_to_data(
        trajectory, advantage
    )
    return data


async def test_advantages_are_added_at_the_places_of_their_tokens(
    module: Any, asking: AsyncClient, client: Client
) -> None:
    [datum] = data_of(module, advantage=2.0)
    await add_advantages(TokenReward(asking, "attention_dense"), [datum], gamma=0.0, scale=3.0)
    item = {
        "prompt": [5, 6, 7],
        "response": [8, 9, 10, 11, 12, 13],
        "mask": [1, 1, 0, 0, 1, 1],
    }
    [answer] = client.score([item], "attention_dense")
    values = np.array(datum.loss_fn_inputs["advantages"].data)
    stock = np.array([0, 0, 2.0, 2.0, 0, 0, 2.0, 2.0])
    assert datum.loss_fn_inputs["target_tokens"].data == [6, 7, 8, 9, 10, 11, 12, 13]
    expected = stock + 3.0 * np.concatenate(([0, 0], answer.rewards))
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert datum.loss_fn_inputs["advantages"].dtype == "float32"
