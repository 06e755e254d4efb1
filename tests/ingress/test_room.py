"""How many bytes of bodies are read and parsed at a time: who waits, for whom, and for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tokenreward.errors import BodyTooLarge, DeadlineExceeded
from tokenreward.guard import ClientGone, Room, Rules
from tokenreward.ingress import Slot, build_app
from tokenreward.metrics import Metrics
from tokenreward.wire import RewardsRequest


class Sender:
    """A caller who sends `body` when it is told to. `was_asked`: whether anybody has begun to read it."""

    def __init__(self, body: bytes, *, declared: bool = True) -> None:
        headers = [(b"content-length", str(len(body)).encode())] if declared else []
        self.scope: dict[str, Any] = {"headers": headers}
        self._body = body
        self.was_asked = False
        self.may_send = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        self.was_asked = True
        await self.may_send.wait()
        return {"type": "http.request", "body": self._body}


def reading(room: Room, sender: Sender, *, limit: int = 100, within_s: float = 5, held: Any = None) -> Any:
    async def read() -> bytes:
        async with room.body(sender.scope, sender.receive, limit=limit, within_s=within_s) as body:
            if held is not None:
                await held.wait()
            return body

    return asyncio.create_task(read())


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_body_waits_unread_until_there_is_room_and_first_come_is_first_served() -> None:
    room, parsed = Room(10), asyncio.Event()
    first, large, small = Sender(b"a" * 6), Sender(b"b" * 6), Sender(b"c")
    for sender in (first, large, small):
        sender.may_send.set()
    tasks = [reading(room, first, held=parsed), reading(room, large), reading(room, small)]
    await turns()
    assert (first.was_asked, large.was_asked, small.was_asked) == (True, False, False)
    parsed.set()
    assert await asyncio.gather(*tasks) == [b"a" * 6, b"b" * 6, b"c"]


async def test_a_lone_body_larger_than_the_room_passes() -> None:
    room, sender = Room(10), Sender(b"a" * 50)
    sender.may_send.set()
    assert await reading(room, sender) == b"a" * 50
    assert await reading(room, sender) == b"a" * 50


async def test_a_body_of_undeclared_size_takes_the_limit_and_keeps_what_it_has() -> None:
    room, parsed = Room(100), asyncio.Event()
    chunked, other = Sender(b"a" * 5, declared=False), Sender(b"b" * 95)
    other.may_send.set()
    tasks = [reading(room, chunked, held=parsed), reading(room, other)]
    await turns()
    assert not other.was_asked
    chunked.may_send.set()
    assert await asyncio.wait_for(tasks[1], 5) == b"b" * 95
    assert not tasks[0].done()
    parsed.set()
    await tasks[0]


async def test_who_sends_nothing_or_gets_no_room_until_the_deadline_is_told_so_and_leaves_nothing_taken() -> None:
    room = Room(10)
    silent, waiting = (reading(room, Sender(b"a" * 10), within_s=0.05) for _ in range(2))
    for task in (silent, waiting):
        with pytest.raises(DeadlineExceeded):
            await task
    await passes(room)


async def test_room_comes_back_from_readers_that_fail_or_are_cancelled() -> None:
    room = Room(10)

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    sender = Sender(b"a" * 10)
    with pytest.raises(ClientGone):
        async with room.body(sender.scope, gone, limit=100, within_s=5):
            pass
    with pytest.raises(BodyTooLarge):
        await reading(room, Sender(b"a" * 101))
    sender.may_send.set()
    with pytest.raises(ZeroDivisionError):
        async with room.body(sender.scope, sender.receive, limit=100, within_s=5):
            raise ZeroDivisionError
    tasks = [reading(room, Sender(b"a" * 10)) for _ in range(2)]  # one reads, one waits
    await turns()
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await passes(room)


async def passes(room: Room) -> None:
    """All of it is free."""
    sender = Sender(b"a" * 10)
    sender.may_send.set()
    assert await asyncio.wait_for(reading(room, sender), 5) == b"a" * 10


async def test_a_replica_reads_no_more_bodies_at_a_time_than_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = asyncio.Event()

    class Slow:
        async def score(self, request: RewardsRequest, **_: Any) -> dict[str, Any]:
            scored.set()
            return {"items": []}

    slot = Slot()
    slot._engine = Slow()  # type: ignore[assignment]
    monkeypatch.setattr("tokenreward.guard.body.ROOM_BYTES", 10)
    rules = Rules(max_body_bytes=1000, max_request_items=9, request_timeout_s=5)
    transport = httpx.ASGITransport(build_app("lm", slot, metrics=Metrics(), rules=rules))
    more = asyncio.Event()

    async def slowly() -> Any:
        yield b'{"scorer": "x", '
        await more.wait()
        yield b'"items": [{"prompt": "p", "response": "r"}]}'

    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        first = asyncio.create_task(client.post("/v1/rewards", content=slowly()))
        await turns()
        second = asyncio.create_task(
            client.post("/v1/rewards", json={"scorer": "x", "items": [{"prompt": "p", "response": "r"}]})
        )
        await turns()
        assert not scored.is_set()
        assert not second.done()
        more.set()
        assert [(await first).status_code, (await second).status_code] == [200, 200]
