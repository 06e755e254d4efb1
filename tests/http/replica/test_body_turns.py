"""Bodies that wait for memory, and bodies that wait to be parsed: who comes next, who may pass, and
what is held meanwhile."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect

from fakes.web import serving_here, until
from tokenreward.engine.slot import Slot
from tokenreward.errors import Overloaded
from tokenreward.http.app import build_app
from tokenreward.http.body import BodyBudget, for_size
from tokenreward.http.budget_queue import BudgetQueue
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import IncomingRequest
from tokenreward.metrics import Metrics

MIB = 2**20


class Holder:
    """A request that holds the share of its body until it is told to end.

    Attributes:
        name: Who asks.
        order: Gets the names of all that have their share, in this order.
    """

    def __init__(
        self, bodies: BodyBudget, size: int, name: str, order: list[str], *, wait_s: float = 20
    ) -> None:
        self.name, self._order = name, order
        self._ends, self.gone = asyncio.Event(), asyncio.Event()
        self._is_sent = False
        self.task = asyncio.create_task(self._hold(bodies, size, wait_s))

    async def _receive(self) -> dict[str, Any]:
        if self._is_sent:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        self._is_sent = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def _hold(self, bodies: BodyBudget, size: int, wait_s: float) -> None:
        self._body = bytes(size)
        scope = {"headers": [(b"content-length", str(size).encode())]}
        sender = IncomingRequest(self._receive, self.name)
        give_up_at = time.monotonic() + wait_s
        async with bodies.body(scope, sender, within_s=30, give_up_at=give_up_at):
            self._order.append(self.name)
            await self._ends.wait()

    async def end(self) -> None:
        self._ends.set()
        await self.task

    async def hang_up(self) -> None:
        """Goes while it waits."""
        self.gone.set()
        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(self.task, 5)


async def stay() -> dict[str, Any]:
    await asyncio.sleep(60)
    return {"type": "http.disconnect"}


def caller(name: str) -> IncomingRequest:
    """One who stays."""
    return IncomingRequest(stay, name)


async def steps() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def end_all(*holders: Holder) -> None:
    for holder in holders:
        await asyncio.wait_for(holder.end(), 5)


def memory(num_mib: int) -> BodyBudget:
    return BodyBudget(num_mib * MIB, max_body_bytes=num_mib * MIB)


async def test_a_large_body_gets_in_before_smaller_ones_that_come_after_it() -> None:
    """Whenever something of the memory is free, a smaller one would fit, and the large one not."""
    bodies, order = memory(8), list[str]()
    first = [Holder(bodies, MIB, f"first {number}", order) for number in range(6)]
    await steps()
    large = Holder(bodies, 6 * MIB, "large", order)
    await steps()
    later = [Holder(bodies, MIB, f"later {number}", order) for number in range(20)]
    await steps()
    for holder in first[:5]:
        await holder.end()
        later.append(Holder(bodies, MIB, "newcomer", order))
        await steps()
        assert len(order) == 6  # nobody takes what becomes free
    await first[5].end()
    await steps()
    assert order[6] == "large"
    await end_all(large, *later)
    assert bodies.num_held == 0


async def test_callers_of_large_bodies_take_turns() -> None:
    bodies, order = memory(4), list[str]()
    holders = [Holder(bodies, 3 * MIB, "many", order) for _ in range(8)]
    await steps()
    one = Holder(bodies, 3 * MIB, "one", order)
    await steps()
    await end_all(*holders[:2], one, *holders[2:])
    assert order.index("one") <= 2


@pytest.mark.parametrize("num_leaving", [1, 4])
async def test_a_caller_who_gives_up_and_comes_again_is_not_behind_a_newcomer(
    num_leaving: int,
) -> None:
    bodies, order = memory(4), list[str]()
    held = Holder(bodies, 3 * MIB, "held", order)
    await steps()
    first = Holder(bodies, 3 * MIB, "first", order)
    await steps()
    many = [Holder(bodies, MIB, "many", order) for _ in range(4)]
    await steps()
    for _ in range(num_leaving):
        await many.pop(0).hang_up()
        many.append(Holder(bodies, MIB, "many", order))
        await steps()
    newcomers = [Holder(bodies, MIB, "newcomer", order) for _ in range(4)]
    await steps()
    await end_all(held, first)
    await steps()
    assert order == ["held", "first", "many", "newcomer", "many"]
    ends = (holder.end() for holder in [*many, *newcomers])
    await asyncio.wait_for(asyncio.gather(*ends), 5)


async def test_small_bodies_keep_their_part_of_the_memory_while_a_large_one_waits() -> None:
    bodies, order = memory(8), list[str]()
    held = [Holder(bodies, 3 * MIB, "held", order) for _ in range(2)]
    await steps()
    large = Holder(bodies, 6 * MIB, "large", order)
    await steps()
    small = [Holder(bodies, MIB // 8, "small", order) for _ in range(20)]
    await steps()
    assert order.count("small") == 16  # a quarter of 8 MiB
    assert "large" not in order
    # More would keep the large one out, which takes its turn once the others of its kind are gone.
    await end_all(*held)
    await steps()
    assert "large" in order
    await end_all(large, *small)


async def test_small_bodies_that_waited_for_a_large_one_get_in_when_it_hangs_up() -> None:
    bodies, order = memory(8), list[str]()
    held = Holder(bodies, 3 * MIB, "held", order)
    await steps()
    large = Holder(bodies, 6 * MIB, "large", order)
    await steps()
    small = [Holder(bodies, MIB // 8, "small", order) for _ in range(20)]
    await steps()
    assert order.count("small") == 16
    await large.hang_up()
    await steps()
    assert order.count("small") == 20
    await end_all(held, *small)


async def test_who_does_not_wait_may_pass_a_waiting_body_up_to_its_size() -> None:
    bodies, order = memory(8), list[str]()
    held = Holder(bodies, 3 * MIB, "held", order)
    await steps()
    large = Holder(bodies, 5 * MIB, "large", order)
    await steps()
    passing = []
    for _ in range(5):
        passing.append(Holder(bodies, MIB, "passing", order, wait_s=0))
        await steps()
        await end_all(*passing[-1:])
    late = Holder(bodies, MIB, "late", order, wait_s=0)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(late.task, 2)
    await end_all(held)
    await steps()
    assert order[-1] == "large"
    second = Holder(bodies, 5 * MIB, "second", order)
    await steps()
    again = Holder(bodies, MIB, "again", order, wait_s=0)  # the second one was passed by nobody
    await steps()
    assert order[-1] == "again"
    await end_all(again, large, second)


async def test_who_passed_a_body_that_hung_up_has_not_passed_the_next_one() -> None:
    bodies, order = memory(8), list[str]()
    held = Holder(bodies, 3 * MIB, "held", order)
    await steps()
    first, second = (Holder(bodies, 4 * MIB, name, order) for name in ("first", "second"))
    await steps()
    for _ in range(2):
        passing = Holder(bodies, 2 * MIB, "passing", order, wait_s=0)
        await steps()
        await end_all(passing)
    await first.hang_up()
    again = Holder(bodies, 2 * MIB, "again", order, wait_s=0)
    await steps()
    assert order[-1] == "again"
    await end_all(again, held, second)


async def test_a_wait_for_memory_ends_with_its_time_or_its_share() -> None:
    bodies, order = memory(4), list[str]()
    held = Holder(bodies, 4 * MIB, "held", order)
    await steps()
    late = Holder(bodies, MIB, "late", order, wait_s=0.1)
    dropped = Holder(bodies, MIB, "dropped", order)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(late.task, 2)
    await steps()
    dropped.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropped.task
    waiting = Holder(bodies, MIB, "waiting", order)
    await steps()
    await end_all(held, waiting)
    assert order == ["held", "waiting"]
    assert bodies.num_held == 0


async def test_a_turn_that_comes_together_with_a_cancellation_is_given_back() -> None:
    free = 0

    def take(share: int) -> bool:
        nonlocal free
        if share > free:
            return False
        free -= share
        return True

    def give_back(share: int) -> None:
        nonlocal free
        free += share
        turns.give()

    turns = BudgetQueue(take, give_back)
    waiting = asyncio.create_task(turns.wait(2, caller("a"), within_s=20))
    other = asyncio.create_task(turns.wait(1, caller("b"), within_s=20))
    await steps()
    give_back(2)
    waiting.cancel()
    await asyncio.wait({waiting, other}, timeout=2)
    assert waiting.cancelled()
    assert other.done()
    assert (free, turns.first_share) == (1, 0)


async def test_who_hangs_up_while_its_body_waits_to_be_parsed_is_not_parsed() -> None:
    bodies = BodyBudget(10**6, max_body_bytes=1000, max_parsed_bytes=10)
    gone, ends, parsed = asyncio.Event(), asyncio.Event(), list[str]()

    async def hang_up() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def parse(name: str, receive: Any) -> None:
        async with bodies.parsing(8, IncomingRequest(receive, name), within_s=20):
            parsed.append(name)
            await ends.wait()

    first = asyncio.create_task(parse("first", stay))
    await steps()
    leaving = asyncio.create_task(parse("leaving", hang_up))
    many = [asyncio.create_task(parse("many", stay)) for _ in range(4)]
    await steps()
    one = asyncio.create_task(parse("one", stay))
    await steps()
    gone.set()
    with pytest.raises(ClientDisconnect):
        await asyncio.wait_for(leaving, 2)
    ends.set()
    await asyncio.wait_for(asyncio.gather(first, one, *many), 5)
    assert sorted(parsed) == ["first", "many", "many", "many", "many", "one"]
    assert parsed.index("one") <= 2  # callers take turns here, too


class Tokenizes:
    """An engine whose threads are taken."""

    def __init__(self) -> None:
        self.scorers: dict[str, Any] = {}
        self.tokenizer = None
        self.preprocess = SimpleNamespace(threads=self)
        self.num_waiting = 0
        self.is_free = asyncio.Event()

    def describe(self) -> list[dict[str, Any]]:
        return [{"limits": {"max_sequence_tokens": 9}}]

    async def run(self, *_: Any, caller: str) -> bytes:
        self.num_waiting += 1
        try:
            await self.is_free.wait()
        finally:
            self.num_waiting -= 1
        return b"{}"


async def backend_of(engine: Tokenizes) -> ReplicaBackend:
    slot = Slot()
    await slot.put(engine)  # type: ignore[arg-type]
    limits = Limits(max_body_bytes=MIB, max_request_items=9, request_timeout_s=20)
    return ReplicaBackend("lm", slot, metrics=Metrics(), limits=limits)


async def test_texts_of_who_hangs_up_wait_for_no_thread() -> None:
    engine = Tokenizes()
    backend = await backend_of(engine)
    async with (
        serving_here(build_app(backend)) as url,
        httpx.AsyncClient(base_url=url, timeout=0.5, trust_env=False) as client,
    ):
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/tokenize", json={"prompt": "a"})
        await until(lambda: engine.num_waiting == 0)
    assert backend.bodies.num_held == 0


async def test_texts_that_wait_for_a_thread_keep_no_other_body_from_being_parsed() -> None:
    engine = Tokenizes()
    backend = await backend_of(engine)
    content = b'{"prompt": "%s"}' % (b"a" * 600)
    backend.bodies = BodyBudget(MIB, max_body_bytes=MIB, max_parsed_bytes=2 * len(content))
    transport = httpx.ASGITransport(build_app(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        tasks = [asyncio.create_task(client.post("/tokenize", content=content)) for _ in range(5)]
        await until(lambda: engine.num_waiting == 5)
        assert backend.bodies.num_held == 5 * len(content)  # their memory is held
        async with backend.bodies.parsing(2 * len(content), caller("other"), within_s=1):
            pass
        engine.is_free.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
    assert backend.bodies.num_held == 0


async def test_bodies_have_threads_of_their_own() -> None:
    """Whoever parses holds a share of a budget, and must not wait for those who load weights."""
    ends = asyncio.Event()
    loop = asyncio.get_running_loop()

    def block() -> None:
        asyncio.run_coroutine_threadsafe(ends.wait(), loop).result()

    loading = [asyncio.create_task(asyncio.to_thread(block)) for _ in range(40)]
    loop.call_later(5, ends.set)  # whoever waits behind them waits until then
    began = time.monotonic()
    assert await for_size(MIB, lambda: "parsed") == "parsed"
    assert time.monotonic() - began < 4
    ends.set()
    await asyncio.gather(*loading)
