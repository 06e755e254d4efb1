"""Callers that stay and callers that hang up, and the items that a deployment of one replica
computes for them."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import httpx

from tokenreward.wire.paths import CALLER_HEADER

SLOW = {"scorer": "reward_model", "items": [{"prompt": [5], "response": [6] * 400}] * 500}
LIGHT = {"scorer": "reward_model", "items": [{"prompt": [5], "response": [6]}] * 2000}
NUM_SLOW, NUM_LIGHT = 2, 3
ONE_CALLER = {CALLER_HEADER: "one"}  # whose requests are served in order, and take no turns
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of both kinds of callers.

    Attributes:
        statuses: The statuses of the replies to the callers that stayed.
        num_asked: The number of items in their requests.
        num_computed: The number of items in all batches that were computed meanwhile.
    """

    statuses: list[int]
    num_asked: int
    num_computed: int


async def come_and_go(client: httpx.AsyncClient, deployment: str) -> Outcome:
    """Let some callers send much and stay. Behind them, let others send, and hang up once their
    items wait."""
    path, num_slow = f"/d/{deployment}/v1/rewards", NUM_SLOW * len(SLOW["items"])
    num_before = await _num_computed(client, deployment)
    slow_calls = [
        asyncio.create_task(client.post(path, json=SLOW, headers=ONE_CALLER))
        for _ in range(NUM_SLOW)
    ]
    await _until(client, deployment, low=1)
    light_calls = [
        asyncio.create_task(client.post(path, json=LIGHT, headers=ONE_CALLER))
        for _ in range(NUM_LIGHT)
    ]
    # More items wait than the slow calls have: so the light calls have come.
    await _until(client, deployment, low=num_slow + 1)
    for call in light_calls:
        call.cancel()
    answers = await asyncio.gather(*slow_calls)
    await _until(client, deployment, high=0)
    num_computed = await _num_computed(client, deployment) - num_before
    return Outcome([answer.status_code for answer in answers], num_slow, int(num_computed))


async def _until(
    client: httpx.AsyncClient, deployment: str, *, low: float = 0, high: float = float("inf")
) -> None:
    """Wait until the number of items in the queue is between these."""
    async with asyncio.timeout(PATIENCE_S):
        while not low <= await _reading(client, deployment, "tokenreward_queued_items") <= high:
            pass


async def _num_computed(client: httpx.AsyncClient, deployment: str) -> float:
    """Items of all batches so far, whether or not a caller was there to be answered."""
    return await _reading(client, deployment, "tokenreward_batch_items_sum")


async def _reading(client: httpx.AsyncClient, deployment: str, metric: str) -> float:
    """The sum of a metric over all its labels but the deployment."""
    text = (await client.get("/metrics")).text
    return sum(
        float(value)
        for value in re.findall(rf'{metric}\{{deployment="{deployment}",.*?\}} (\S+)', text)
    )
