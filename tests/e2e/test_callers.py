"""Callers who hang up while their items wait cost the device nothing; what a replica's process has
set for itself."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from fakes import callers


async def test_items_of_callers_who_hung_up_are_never_computed(service: Any) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=callers.PATIENCE_S) as client:
        outcome = await callers.come_and_go(client, "rm")
    assert set(outcome.statuses) == {200}
    assert outcome.num_computed == outcome.num_asked


async def test_a_replica_computes_on_its_own_cpus_in_short_turns_and_freezes_what_is_loaded(
    service: Any,
) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        item = {"prompt": [5], "response": [6, 7, 8, 9]}
        reply = (
            await client.post("/d/rm/v1/rewards", json={"scorer": "facts", "items": [item]})
        ).json()
    threads, omp_threads, turn_s, num_frozen = reply["items"][0]["rewards"]
    assert (threads, omp_threads) == (1, 1)  # the service was started with OMP_NUM_THREADS=7
    assert turn_s == pytest.approx(0.0005)
    assert num_frozen > 100_000
