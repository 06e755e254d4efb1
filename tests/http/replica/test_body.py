"""How many bytes of bodies are parsed at a time: who waits, for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tokenreward.engine.slot import Slot
from tokenreward.errors import BodyTooLarge, DeadlineExceeded
from tokenreward.http.guard import ClientGone, Limits, Room
from tokenreward.http.replica import build_app
from tokenreward.metrics import Metrics
from tokenreward.wire import RewardsRequest


class Sender:
    """A caller who sends `body` when it is told to."""

    def __init__(self, body: bytes, *, at_once: bool = True) -> None:
        self.scope: dict[str, Any] = {"headers": [(b"content-length", str(len(body)).encode())]}
        self._body = body
        self.may_send = asyncio.Event()
        if at_once:
            self.may_send.set()

    async def receive(self) -> dict[str, Any]:
        await self.may_send.wait()
        return {"type": "http.request", "body": self._body}


def reading(
    room: Room, sender: Sender, *, limit: int = 100, within_s: float = 5, held: Any = None
) -> Any:
    async def read() -> bytes:
        async with room.body(sender.scope, sender.receive, limit=limit, within_s=within_s) as body:
            if held is not None:
                await held.wait()
            return body

    return asyncio.create_task(read())


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_body_waits_until_there_is_room_and_first_come_is_first_served() -> None:
    room, parsed = Room(10), asyncio.Event()
    first, large, small = Sender(b"a" * 6), Sender(b"b" * 6), Sender(b"c")
    tasks = [reading(room, first, held=parsed), reading(room, large), reading(room, small)]
    await turns()
    assert not any(task.done() for task in tasks)
    parsed.set()
    assert await asyncio.gather(*tasks) == [b"a" * 6, b"b" * 6, b"c"]


async def test_a_lone_body_larger_than_the_room_passes() -> None:
    room, sender = Room(10), Sender(b"a" * 50)
    assert await reading(room, sender) == b"a" * 50
    assert await reading(room, sender) == b"a" * 50


async def test_a_caller_who_sends_slowly_holds_up_nobody() -> None:
    room, slow = Room(10), Sender(b"a" * 10, at_once=False)
    task = reading(room, slow)
    await turns()
    assert await asyncio.wait_for(reading(room, Sender(b"b" * 10)), 5) == b"b" * 10
    assert not task.done()
    slow.may_send.set()
    assert await task == b"a" * 10


async def test_who_is_silent_or_gets_no_room_is_told_at_the_deadline_and_leaves_nothing() -> None:
    room, parsed = Room(10), asyncio.Event()
    holding = reading(room, Sender(b"a" * 10), held=parsed)
    await turns()
    silent = reading(room, Sender(b"a" * 10, at_once=False), within_s=0.05)
    waiting = reading(room, Sender(b"a" * 10), within_s=0.05)
    for task in (silent, waiting):
        with pytest.raises(DeadlineExceeded):
            await task
    parsed.set()
    await holding
    await passes(room)


async def test_room_comes_back_from_readers_that_fail_or_are_cancelled() -> None:
    room, parsed = Room(10), asyncio.Event()

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    sender = Sender(b"a" * 10)
    with pytest.raises(ClientGone):
        async with room.body(sender.scope, gone, limit=100, within_s=5):
            pass
    with pytest.raises(BodyTooLarge):
        await reading(room, Sender(b"a" * 101))
    with pytest.raises(ZeroDivisionError):
        async with room.body(sender.scope, sender.receive, limit=100, within_s=5):
            raise ZeroDivisionError
    tasks = [
        reading(room, Sender(b"a" * 10), held=parsed) for _ in range(2)
    ]  # one parses, one waits
    await turns()
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await passes(room)


async def passes(room: Room) -> None:
    """All of it is free."""
    assert await asyncio.wait_for(reading(room, Sender(b"a" * 10)), 5) == b"a" * 10


async def test_a_replica_parses_no_more_bodies_at_a_time_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsing = most = 0

    async def slowly(
        _: int, parse: Callable[..., RewardsRequest], *arguments: Any
    ) -> RewardsRequest:
        nonlocal parsing, most
        parsing += 1
        most = max(most, parsing)
        await turns()
        parsing -= 1
        return parse(*arguments)

    class Scores:
        async def score(self, request: RewardsRequest, **_: Any) -> dict[str, Any]:
            return {"items": []}

    slot = Slot()
    slot._engine = Scores()  # type: ignore[assignment]
    monkeypatch.setattr("tokenreward.http.replica.for_size", slowly)
    rules = Limits(max_body_bytes=1000, max_request_items=9, request_timeout_s=5)
    content = b'{"scorer": "x", "items": [{"prompt": "p", "response": "r"}]}'
    for num_bytes, at_a_time in ((len(content), 1), (2 * len(content), 2)):
        monkeypatch.setattr("tokenreward.http.body.ROOM_BYTES", num_bytes)
        most = 0
        transport = httpx.ASGITransport(build_app("lm", slot, metrics=Metrics(), limits=rules))
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            answers = await asyncio.gather(
                *(client.post("/v1/rewards", content=content) for _ in range(5))
            )
        assert [answer.status_code for answer in answers] == [200] * 5
        assert most == at_a_time
