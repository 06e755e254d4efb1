"""How many bytes of bodies a process holds and parses: who is refused, who waits, and for how
long."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import httpx
import pytest
from starlette.requests import ClientDisconnect

from fakes.web import serving_here, until
from tokenreward.engine.slot import Slot
from tokenreward.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceededError,
    MalformedBody,
    Overloaded,
)
from tokenreward.http.app import build_app
from tokenreward.http.body import LARGE_BODY_BYTES, BodyBudget, for_size, parsed_size
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import IncomingRequest
from tokenreward.metrics import Metrics
from tokenreward.wire import Reply, RewardsRequest
from tokenreward.wire.paths import HOLD_HEADER
from tokenreward.wire.reply import NO_TIME, NO_USAGE

MIB = 2**20
CONTENT = b'{"scorer": "x", "items": [{"prompt": "p", "response": "r"}]}'


class Sender:
    """A caller who sends `body` when it is told to."""

    def __init__(self, body: bytes, *, at_once: bool = True, declared: str | None = None) -> None:
        length = str(len(body)) if declared is None else declared
        headers = [(b"content-length", length.encode("latin-1"))] if length else []
        self.scope: dict[str, Any] = {"headers": headers}
        self._body, self.is_sent = body, False
        self.may_send, self.gone = asyncio.Event(), asyncio.Event()
        if at_once:
            self.may_send.set()

    async def receive(self) -> dict[str, Any]:
        await self.may_send.wait()
        if self.is_sent:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        self.is_sent = True
        return {"type": "http.request", "body": self._body}


def budget(num_bytes: int = 1000, *, at_a_time: int = 10, limit: int = 100) -> BodyBudget:
    return BodyBudget(num_bytes, max_body_bytes=limit, max_parsed_bytes=at_a_time)


def reading(
    bodies: BodyBudget,
    sender: Sender,
    *,
    within_s: float = 5,
    held: asyncio.Event | None = None,
    name: str = "",
) -> asyncio.Task[bytes]:
    """Reads a body, and parses it until `held` is set."""
    caller = IncomingRequest(sender.receive, name)
    sender.is_sent = False

    async def read() -> bytes:
        async with (
            bodies.body(sender.scope, caller, within_s=within_s) as body,
            bodies.parsing(len(body), caller, within_s=within_s),
        ):
            if held is not None:
                await held.wait()
            return body

    return asyncio.create_task(read())


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_body_is_parsed_in_its_turn_and_first_come_is_first_served() -> None:
    bodies, parsed = budget(), asyncio.Event()
    first, large, small = Sender(b"a" * 6), Sender(b"b" * 6), Sender(b"c")
    tasks = [reading(bodies, first, held=parsed), reading(bodies, large), reading(bodies, small)]
    await turns()
    assert not any(task.done() for task in tasks)
    parsed.set()
    assert await asyncio.gather(*tasks) == [b"a" * 6, b"b" * 6, b"c"]


async def test_a_lone_body_larger_than_what_is_parsed_at_a_time_passes() -> None:
    bodies, sender = budget(), Sender(b"a" * 50)
    assert await reading(bodies, sender) == b"a" * 50
    assert await reading(bodies, sender) == b"a" * 50


async def test_a_caller_who_sends_slowly_holds_its_own_share_and_holds_up_nobody() -> None:
    bodies, slow = budget(), Sender(b"a" * 10, at_once=False)
    task = reading(bodies, slow)
    await turns()
    assert bodies.num_held == 10
    assert await asyncio.wait_for(reading(bodies, Sender(b"b" * 10)), 5) == b"b" * 10
    assert not task.done()
    slow.may_send.set()
    assert await task == b"a" * 10
    assert bodies.num_held == 0


async def test_a_body_that_does_not_fit_is_refused_before_a_byte_of_it_is_read() -> None:
    bodies = budget(25)
    slow = [reading(bodies, Sender(b"a" * 10, at_once=False)) for _ in range(2)]
    await turns()
    sender = Sender(b"b" * 10, at_once=False)
    with pytest.raises(Overloaded, match=r"20 bytes .* the limit is 25") as caught:
        await asyncio.wait_for(reading(bodies, sender), 5)
    assert caught.value.retry_after_s == 1
    assert await reading(bodies, Sender(b"c" * 5)) == b"c" * 5
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    sender.may_send.set()
    assert await reading(bodies, sender) == b"b" * 10


async def test_a_body_of_no_declared_length_takes_the_largest_share_until_it_is_there() -> None:
    bodies, sender, held = budget(150), Sender(b"a", at_once=False, declared=""), asyncio.Event()
    task = reading(bodies, sender, held=held)
    await turns()
    assert bodies.num_held == 100
    sender.may_send.set()
    await turns()
    assert bodies.num_held == 1
    held.set()
    await task
    assert bodies.num_held == 0


@pytest.mark.parametrize("declared", ["\u00b2", "1e3", "-1"])
async def test_declared_length_that_is_no_number_is_not_believed(declared: str) -> None:
    # The first is a digit, but none that `int` reads.
    assert await reading(budget(), Sender(b"12345", declared=declared)) == b"12345"


@pytest.mark.parametrize("declared", ["101", "1" * 9999])
async def test_declared_length_past_the_limit_is_refused_whatever_its_digits(
    declared: str,
) -> None:
    with pytest.raises(BodyTooLarge):
        await reading(budget(), Sender(b"12345", declared=declared, at_once=False))


async def test_a_body_longer_than_it_declares_is_refused() -> None:
    with pytest.raises(MalformedBody, match="longer than the 3 bytes"):
        await reading(budget(), Sender(b"12345", declared="3"))


async def test_who_is_silent_or_not_parsed_is_told_at_the_deadline_and_leaves_nothing() -> None:
    bodies, parsed = budget(), asyncio.Event()
    holding = reading(bodies, Sender(b"a" * 10), held=parsed)
    await turns()
    silent = reading(bodies, Sender(b"a" * 10, at_once=False), within_s=0.05)
    waiting = reading(bodies, Sender(b"a" * 10), within_s=0.05)
    for task in (silent, waiting):
        with pytest.raises(DeadlineExceededError):
            await task
    parsed.set()
    await holding
    await is_free(bodies)


async def test_a_body_that_arrives_slowly_is_given_up_whatever_its_callers_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bodies = BodyBudget(1000, max_body_bytes=100, max_receive_s=0.05)
    with pytest.raises(BodyTimeout, match=r"within 0\.05 s \(`request_timeout_s`\)"):
        await reading(bodies, Sender(b"a" * 10, at_once=False))
    assert bodies.num_held == 0
    monkeypatch.setattr("tokenreward.http.body_stream._MAX_PAUSE_S", 0.05)
    bodies = budget()
    with pytest.raises(BodyTimeout, match=r"stopped arriving for 0\.05 s"):
        await asyncio.wait_for(reading(bodies, Sender(b"a" * 10, at_once=False)), 2)
    await is_free(bodies)


async def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte every now and then would hold its share until `request_timeout_s`."""
    monkeypatch.setattr("tokenreward.http.body_stream._GRACE_S", 0.1)
    bodies, scope = budget(), Sender(b"a" * 90).scope

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": True}

    with pytest.raises(BodyTimeout, match="less than 32768 bytes a second"):
        async with bodies.body(scope, IncomingRequest(receive), within_s=5):
            pass
    assert bodies.num_held == 0


async def test_slow_senders_of_large_bodies_leave_room_for_small_ones() -> None:
    bodies = BodyBudget(16 * MIB, max_body_bytes=4 * MIB)
    senders = [Sender(b"", at_once=False, declared=str(4 * MIB)) for _ in range(60)]
    slow = [reading(bodies, sender) for sender in senders]
    await turns()
    refused = [task for task in slow if task.done()]
    assert len(refused) == 57
    assert bodies.num_held == 12 * MIB
    for task in refused:
        with pytest.raises(Overloaded):
            await task
    assert await reading(bodies, Sender(b"a" * 1000)) == b"a" * 1000
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert bodies.num_held == 0
    largest = BodyBudget(4 * MIB, max_body_bytes=4 * MIB)  # one may always come
    assert await reading(largest, Sender(b"a" * 4 * MIB)) == b"a" * 4 * MIB


async def test_a_deadline_far_away_does_not_let_a_slow_body_in() -> None:
    limits = Limits(max_body_bytes=1000, max_request_items=9, request_timeout_s=0.2)
    backend = await backend_of(Scores(), limits)

    async def half() -> AsyncIterator[bytes]:
        yield CONTENT[:9]
        await asyncio.sleep(20)

    transport = httpx.ASGITransport(build_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        headers = {"x-request-timeout-seconds": "60"}
        late = await client.post("/v1/rewards", content=half(), headers=headers)
    assert (late.status_code, late.json()["error"]["code"]) == (408, "body_timeout")
    assert late.headers["connection"] == "close"
    assert backend.bodies.num_held == 0


async def test_a_cancelled_request_holds_its_turn_until_the_thread_that_parses_ends() -> None:
    bodies, may_end, has_begun = budget(), threading.Event(), threading.Event()

    def parse() -> None:
        has_begun.set()
        may_end.wait(5)

    async def request() -> None:
        caller = IncomingRequest(Sender(b"", at_once=False).receive)
        async with bodies.parsing(10, caller, within_s=5):
            await for_size(LARGE_BODY_BYTES, parse)

    first = asyncio.create_task(request())
    await until(has_begun.is_set)
    for _ in range(2):
        first.cancel()
        await turns()
    other = reading(bodies, Sender(b"a" * 10))
    await turns()
    assert not first.done()
    assert not other.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await other == b"a" * 10


def test_extra_bytes_are_refused_beside_those_of_others_and_never_alone() -> None:
    bodies = budget(100)
    with bodies.extras() as hold, bodies.extras() as hold_other:
        hold(60)
        hold(60)
        with pytest.raises(Overloaded, match=r"120 bytes .* the limit is 100"):
            hold_other(1)
        assert bodies.num_held == 120
    assert bodies.num_held == 0


async def test_shares_come_back_from_readers_that_fail_or_are_cancelled() -> None:
    bodies, parsed = budget(), asyncio.Event()

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    sender = Sender(b"a" * 10)
    with pytest.raises(ClientDisconnect):
        async with bodies.body(sender.scope, IncomingRequest(gone), within_s=5):
            pass
    with pytest.raises(BodyTooLarge):
        await reading(bodies, Sender(b"a" * 101, declared=""))
    with pytest.raises(ZeroDivisionError):
        async with bodies.body(sender.scope, IncomingRequest(sender.receive), within_s=5):
            raise ZeroDivisionError
    # One is being parsed, one waits.
    tasks = [reading(bodies, Sender(b"a" * 10), held=parsed) for _ in range(2)]
    await turns()
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await is_free(bodies)


async def is_free(bodies: BodyBudget) -> None:
    """Nothing is held, and nothing is being parsed."""
    assert bodies.num_held == 0
    assert await asyncio.wait_for(reading(bodies, Sender(b"a" * 10)), 5) == b"a" * 10


class Scores:
    """An engine whose replies have no items."""

    scorers: ClassVar[dict[str, Any]] = {}

    async def score(self, request: RewardsRequest, **_: Any) -> Reply:
        return Reply(id="", items=[], usage=NO_USAGE, timing=NO_TIME)


async def backend_of(engine: Any, limits: Limits) -> ReplicaBackend:
    slot = Slot()
    await slot.put(engine)
    return ReplicaBackend("lm", slot, metrics=Metrics(), limits=limits)


@pytest.mark.parametrize("at_a_time", [1, 2])
async def test_a_replica_parses_no_more_bytes_at_a_time_than_it_may(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int
) -> None:
    num_parsing = most = 0

    async def slowly(_: int, work: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal num_parsing, most
        if work.__name__ != "parse":
            return work(*arguments)
        num_parsing += 1
        most = max(most, num_parsing)
        await turns()
        num_parsing -= 1
        return work(*arguments)

    backend = await backend_of(
        Scores(), Limits(max_body_bytes=1000, max_request_items=9, request_timeout_s=5)
    )
    backend.bodies = BodyBudget(
        10_000, max_body_bytes=1000, max_parsed_bytes=at_a_time * parsed_size(CONTENT)
    )
    monkeypatch.setattr("tokenreward.http.replica.for_size", slowly)
    transport = httpx.ASGITransport(build_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        answers = await asyncio.gather(
            *(client.post("/v1/rewards", content=CONTENT) for _ in range(5))
        )
    assert [answer.status_code for answer in answers] == [200] * 5
    assert most == at_a_time


async def test_a_small_body_is_parsed_while_large_ones_wait_for_each_other() -> None:
    bodies = budget(10_000, at_a_time=640, limit=1000)
    held = asyncio.Event()
    large = [reading(bodies, Sender(b"x" * 600), held=held) for _ in range(3)]
    await turns()
    assert await asyncio.wait_for(reading(bodies, Sender(b"x" * 9)), 1) == b"x" * 9
    assert not any(task.done() for task in large)
    held.set()
    await asyncio.gather(*large)


async def test_forty_callers_of_16_mib_hold_no_more_than_the_budget() -> None:
    """Slow senders over real HTTP: each declares 16 MiB, sends 12 and stalls."""
    limits = Limits(
        max_body_bytes=16 * MIB,
        max_request_items=9,
        request_timeout_s=30,
        max_body_memory_bytes=64 * MIB,
    )
    backend = await backend_of(Scores(), limits)
    piece = bytes(MIB)
    writers, statuses = [], []

    async def send(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writers.append(writer)
        head = f"POST /v1/rewards HTTP/1.1\r\nHost: h\r\nContent-Length: {16 * MIB}\r\n"
        head += f"{HOLD_HEADER}: 0\r\n\r\n"
        writer.write(head.encode())
        try:
            for _ in range(12):
                writer.write(piece)
                await writer.drain()
            statuses.append(await reader.readline())
        except ConnectionError:  # refused, and closed before all was sent
            statuses.append(b"")

    async with serving_here(build_app(backend)) as url:
        host, port = url.removeprefix("http://").split(":")
        tracemalloc.start()
        try:
            tasks = [asyncio.create_task(send(host, int(port))) for _ in range(40)]
            await until(lambda: len(statuses) == 37, seconds=30)
            await asyncio.sleep(0.5)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert backend.bodies.num_held == 48 * MIB  # a quarter is left to small bodies
        assert peak < 96 * MIB
        answered = [status for status in statuses if status]
        assert all(b" 503 " in status for status in answered)
        async with httpx.AsyncClient(base_url=url, headers={HOLD_HEADER: "0"}) as client:
            refused = await client.post("/v1/rewards", content=bytes(MIB))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert (await client.post("/v1/rewards", content=CONTENT)).status_code == 200
            for task, writer in zip(tasks, writers, strict=True):
                task.cancel()
                writer.close()
            await until(lambda: backend.bodies.num_held == 0)
            assert (await client.post("/v1/rewards", content=CONTENT)).status_code == 200


async def test_a_caller_who_hangs_up_as_its_share_is_taken_takes_nothing_with_it() -> None:
    bodies = budget(100)

    class Leaving(IncomingRequest):
        async def unless_gone(self, work: Any) -> Any:
            await work
            raise ClientDisconnect

    holder = Sender(bytes(80), at_once=False)
    first = reading(bodies, holder)
    await until(lambda: bodies.num_held == 80)
    leaving = Leaving(Sender(bytes(80)).receive)
    scope = {"headers": [(b"content-length", b"80")]}

    async def read() -> None:
        async with bodies.body(scope, leaving, within_s=5, give_up_at=time.monotonic() + 5):
            pass

    waiting = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    holder.may_send.set()
    await first
    with pytest.raises(ClientDisconnect):
        await waiting
    assert bodies.num_held == 0
