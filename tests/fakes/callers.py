"""Callers who stay and callers who hang up: what a deployment of one replica computes for
either."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import httpx

SLOW = {"scorer": "reward_model", "items": [{"prompt": [5], "response": [6] * 400}] * 500}
LIGHT = {"scorer": "reward_model", "items": [{"prompt": [5], "response": [6]}] * 2000}
NUM_SLOW, NUM_LIGHT = 2, 3
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """Statuses for those who stayed, the items they asked for, and the items of all batches
    computed meanwhile."""

    statuses: list[int]
    num_asked: int
    num_computed: int


async def come_and_go(client: httpx.AsyncClient, deployment: str) -> Outcome:
    """Some send much and stay; behind them others send, and hang up once their items wait."""
    path, num_slow = f"/d/{deployment}/v1/rewards", NUM_SLOW * len(SLOW["items"])
    before = await _num_computed(client, deployment)
    staying = [asyncio.create_task(client.post(path, json=SLOW)) for _ in range(NUM_SLOW)]
    await _until(client, deployment, low=1)
    leaving = [asyncio.create_task(client.post(path, json=LIGHT)) for _ in range(NUM_LIGHT)]
    await _until(
        client, deployment, low=num_slow + 1
    )  # so many wait only if those who leave have come
    for caller in leaving:
        caller.cancel()
    answers = await asyncio.gather(*staying)
    await _until(client, deployment, high=0)
    computed = await _num_computed(client, deployment) - before
    return Outcome([answer.status_code for answer in answers], num_slow, int(computed))


async def _until(
    client: httpx.AsyncClient, deployment: str, *, low: float = 0, high: float = float("inf")
) -> None:
    """Until so many items wait."""
    async with asyncio.timeout(PATIENCE_S):
        while not low <= await _reading(client, deployment, "tokenreward_queued_items") <= high:
            pass


async def _num_computed(client: httpx.AsyncClient, deployment: str) -> float:
    """Items of all batches so far, whether or not anybody was told."""
    return await _reading(client, deployment, "tokenreward_batch_items_sum")


async def _reading(client: httpx.AsyncClient, deployment: str, metric: str) -> float:
    text = (await client.get("/metrics")).text
    return sum(
        float(value)
        for value in re.findall(rf'{metric}\{{deployment="{deployment}",.*?\}} (\S+)', text)
    )
