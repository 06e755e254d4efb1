"""Who asks: callers are told apart by their API keys, else by their connections, and take turns."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect

from fakes.web import until
from tokenreward.http.scope import IncomingRequest, caller_of
from tokenreward.wire.paths import CALLER_HEADER

KEY, OTHER_KEY = "the-first-key", "another-key"


def body(response: str) -> dict[str, Any]:
    return {"scorer": "endogenous", "items": [{"prompt": "2+2?", "response": response}]}


async def test_a_key_that_asks_once_is_served_before_the_flood_of_another_key(locked: Any) -> None:
    async def ask(response: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        answer = await client.post("/v1/rewards", json=body(response), headers=headers)
        assert answer.status_code == 200

    batcher = locked.engine.batcher
    async with httpx.AsyncClient(base_url=locked.url, timeout=20) as client:
        with locked.busy_device():
            flood = [asyncio.create_task(ask("It is 4.", KEY)) for _ in range(4)]
            await until(lambda: batcher.queued_items == len(flood))
            late = asyncio.create_task(ask("It is five.", OTHER_KEY))
            await until(lambda: batcher.queued_items == len(flood) + 1)
            callers = [job.caller for job in batcher.waiting]
        await asyncio.gather(*flood, late)
    assert [caller == callers[0] for caller in callers] == [True, False, True, True, True]
    assert not any(key in caller for key in (KEY, OTHER_KEY) for caller in callers)


@pytest.mark.parametrize(
    ("headers", "client", "caller"),
    [
        ({}, ("10.0.0.1", 5), "10.0.0.1:5"),
        ({CALLER_HEADER: "10.0.0.9:7"}, ("10.0.0.1", 5), "10.0.0.9:7"),
        ({}, None, ""),
    ],
)
def test_without_a_key_the_connection_is_the_caller(
    headers: dict[str, str], client: Any, caller: str
) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert caller_of({"type": "http", "headers": pairs, "client": client}) == caller


async def test_a_key_is_one_caller_however_it_is_written_and_whatever_a_header_claims(
    locked: Any,
) -> None:
    headers = [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer   {KEY}"},
        {"Authorization": f"Bearer {KEY}", CALLER_HEADER: "10.0.0.9:7"},
    ]
    callers = await callers_of(locked, headers)
    assert len(set(callers)) == 1
    assert KEY not in callers[0]


async def test_without_keys_a_key_that_all_send_does_not_make_them_one_caller(served: Any) -> None:
    callers = await callers_of(served, [{"Authorization": "Bearer EMPTY"}] * 2)
    assert len(set(callers)) == 2


async def callers_of(replica: Any, headers: list[dict[str, str]]) -> list[str]:
    """Whom a replica takes the senders of these headers for, each on a connection of its own."""

    async def ask(headers: dict[str, str]) -> None:
        async with httpx.AsyncClient(base_url=replica.url, timeout=20) as client:
            answer = await client.post("/v1/rewards", json=body("It is 4."), headers=headers)
            assert answer.status_code == 200

    batcher = replica.engine.batcher
    with replica.busy_device():
        requests = [asyncio.create_task(ask(each)) for each in headers]
        await until(lambda: batcher.queued_items == len(headers))
        callers = [job.caller for job in batcher.waiting]
    await asyncio.gather(*requests)
    return callers


async def test_a_server_that_fails_to_receive_has_lost_the_caller() -> None:
    """Ray's own, when its proxy drops the request of a caller who hung up."""
    work = asyncio.Event()

    async def receive() -> Any:
        raise RuntimeError("the request was cancelled")

    caller = IncomingRequest(receive)
    assert (await caller.receive())["type"] == "http.disconnect"
    with pytest.raises(ClientDisconnect):
        await IncomingRequest(receive).unless_gone(work.wait())
