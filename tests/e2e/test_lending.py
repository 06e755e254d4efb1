"""Two replicas of the running service lend to each other, also while their weights change."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest

from fakes.readings import readings
from fakes.versions import Truths
from tokenreward_client import AsyncClient

SETTINGS = {"name": "lm", "task": "causal_lm", "scorers": [{"type": "endogenous"}]}
ITEMS = [{"prompt": [5 + n] * 100, "response": [6 + n, 7, 8 + n] * 30} for n in range(30)]
COPIES = 20
ADMIN_KEY = "the-admin-key"


@pytest.fixture(scope="module")
def checkpoints(config: Any) -> list[str]:
    """Odd versions are the first, even ones the second."""
    return [str(config.parent / name) for name in ("lm", "lm-2")]


async def num_lent(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    lent = readings(text, "lent_items_total", deployment="lm")
    return sum(number for labels, number in lent.items() if 'outcome="computed"' in labels)


async def ask(client: httpx.AsyncClient, truths: Truths) -> tuple[int, float]:
    """All items in one request to one replica, judged: the reply's version, and how many items
    were lent."""
    before = await num_lent(client)
    body = {"scorer": "endogenous", "items": ITEMS * COPIES}
    reply = (await client.post("/d/lm/v1/rewards", json=body)).json()
    for index, item in enumerate(reply["items"]):
        rewards = np.asarray(item["rewards"], np.float32)
        assert truths.is_right(reply["version"], "endogenous", index % len(ITEMS), rewards)
    return reply["version"], await num_lent(client) - before


async def test_a_burst_at_one_replica_is_computed_by_both_whatever_is_pushed(
    service: Any, checkpoints: list[str]
) -> None:
    truths = await Truths.computed(SETTINGS, checkpoints, ITEMS)
    async with (
        httpx.AsyncClient(base_url=service.url, timeout=120) as client,
        AsyncClient(service.url, timeout_s=120) as pushes,
    ):
        first = (await pushes.weights("lm", ADMIN_KEY)).replicas[0].version or 0
        version, num_items = await ask(client, truths)
        assert version == first
        assert num_items > 0
        for version in (first + 1, first + 2):  # the last one is the first checkpoint again
            burst = asyncio.create_task(ask(client, truths))
            await asyncio.sleep(0.2)
            checkpoint = checkpoints[(version - 1) % 2]
            await pushes.update_weights(
                "lm", checkpoint=checkpoint, version=version, admin_key=ADMIN_KEY
            )
            served, _ = await burst
            assert served in (version - 1, version)
