"""Replicas lend to each other: who is asked, who gets what, and what becomes of it when a peer is
busy, dead or late. The network is played by calls in one process, the clock by the test."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.layouts import Intercepted
from fakes.web import until
from tokenreward.deployment import lending as module
from tokenreward.deployment.lending import Lender
from tokenreward.engine.lending import Lending, Repayment
from tokenreward.engine.slot import Slot
from tokenreward.errors import InternalError
from tokenreward.wire import RewardsRequest, parse

NUM_ITEMS = 12


class Network:
    """All replicas by address, and their faults."""

    def __init__(self) -> None:
        self.lenders: dict[str, Lender] = {}
        self.calls: list[tuple[str, str]] = []
        self.dead: set[str] = set()
        self.lost: set[tuple[str, str]] = set()  # calls that arrive nowhere
        self.stopping: set[str] = set()
        self.is_unknown = False

    async def call(self, address: str, method: str, *args: Any) -> Any:
        self.calls.append((address, method))
        if address in self.dead:
            raise ConnectionError(address)
        if (address, method) in self.lost:
            return None
        result = getattr(self.lenders[address], method)(*pickle.loads(pickle.dumps(args)))  # noqa: S301
        return result if method == "status" else None


@dataclass
class Seat:
    """A replica's place in the network."""

    address: str
    network: Network

    async def addresses(self) -> list[str]:
        self.network.calls.append(("all", "address"))
        if self.network.is_unknown:
            return []
        return [each for each in self.network.lenders if each not in self.network.stopping]

    async def call(self, *args: Any) -> Any:
        return await self.network.call(*args)


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Deployment:
    """Replicas on engines of one checkpoint."""

    network: Network
    engines: dict[str, Any]
    slots: dict[str, Slot]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(module, "time", moved)
    return moved


@pytest.fixture
def deploy(make_engine: Callable[..., Any], clock: Clock) -> Callable[..., Deployment]:
    def make(*addresses: str, **settings_of_b: Any) -> Deployment:
        network, engines, slots = Network(), {}, {}
        for address in addresses:
            settings = settings_of_b if address == "b" else {}
            engine = make_engine("causal_lm", ["endogenous"], **settings)
            engines[address], slots[address] = engine, Slot(engine)
            engine.batcher.note_rate(100, 1.0)  # tokens a second: all that waits is a surplus
            network.lenders[address] = Lender(
                slots[address],
                Seat(address, network),
                lambda *args, **labels: None,  # type: ignore[arg-type]
            )
        return Deployment(network, engines, slots)

    return make


@asynccontextmanager
async def busy(engine: Any) -> AsyncIterator[None]:
    """The engine's device is at work meanwhile."""
    gate, begun = threading.Event(), threading.Event()

    def run(requests: Any, real: Any) -> Any:
        begun.set()
        gate.wait(20)
        return real(requests)

    Intercepted(engine, run)
    first = asyncio.create_task(engine.score(burst(1)))
    await until(begun.is_set)
    try:
        yield
    finally:
        gate.set()
        await first


def burst(num_items: int = NUM_ITEMS) -> RewardsRequest:
    items = [{"prompt": [5, 6, 7], "response": [20 + i, 21, 22]} for i in range(num_items)]
    return parse(RewardsRequest, {"scorer": "endogenous", "items": items})


async def waiting(engine: Any, num_items: int = NUM_ITEMS) -> asyncio.Task[Any]:
    task = asyncio.create_task(engine.score(burst(num_items)))
    await until(lambda: engine.batcher.queued_items == num_items)
    return task


async def assert_rewards(deployment: Deployment, asked: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(10):
        reply = await asked
    truth = await next(iter(deployment.engines.values())).score(burst(len(reply.items)))
    for ours, theirs in zip(reply.items, truth.items, strict=True):
        np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=1e-4)


async def meet(deployment: Deployment) -> None:
    """What each replica's loop does first: it takes note of its engine."""
    for lender in deployment.network.lenders.values():
        await lender.lend_once()
    deployment.network.calls.clear()


@asynccontextmanager
async def burst_at_a(deployment: Deployment) -> AsyncIterator[tuple[Any, Lender]]:
    """A burst waits at replica "a" meanwhile; in the end its rewards are right."""
    await meet(deployment)
    a = deployment.engines["a"]
    async with busy(a):
        asked = await waiting(a)
        yield a, deployment.network.lenders["a"]
    await assert_rewards(deployment, asked)


async def test_a_burst_is_shared_by_all_replicas_and_its_caller_notices_nothing(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b", "c")
    async with burst_at_a(deployment) as (a, lender):
        while a.batcher.queued_items > 1:
            assert await lender.lend_once()
            await until(lambda: not lender.has_loans)
        assert a.batcher.queued_tokens == a.batcher.waiting_tokens


async def test_two_loans_at_a_peer_and_no_more(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    deployment.network.lost.add(("b", "accept"))
    async with burst_at_a(deployment) as (_, lender):
        assert [await lender.lend_once() for _ in range(3)] == [True, True, False]
        clock.now += 60
        assert not await lender.lend_once()


async def test_nothing_waits_and_nothing_is_said(deploy: Callable[..., Deployment]) -> None:
    deployment = deploy("a", "b")
    tasks = [
        asyncio.create_task(lender.run_forever()) for lender in deployment.network.lenders.values()
    ]
    await asyncio.sleep(0.2)
    assert deployment.network.calls == []
    for task in tasks:
        task.cancel()


async def test_a_replica_alone_asks_for_peers_once_in_a_while_and_lends_nothing(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a")
    async with burst_at_a(deployment) as (_, lender):
        assert [await lender.lend_once() for _ in range(5)] == [False] * 5
        assert deployment.network.calls == [("all", "address")]
        clock.now += 3
        assert not await lender.lend_once()
        assert len(deployment.network.calls) == 2


@pytest.mark.parametrize("reason", ["busy", "version", "checkpoint"])
async def test_a_peer_that_is_busy_or_serves_other_weights_gets_nothing(
    deploy: Callable[..., Deployment],
    clock: Clock,
    language_model: Path,
    tmp_path: Path,
    reason: str,
) -> None:
    shutil.copytree(language_model, tmp_path / "other")
    settings = {
        "busy": {},
        "version": {"version": 2},
        "checkpoint": {"checkpoint": tmp_path / "other"},
    }
    deployment = deploy("a", "b", **settings[reason])
    await meet(deployment)
    a, b, lender = *deployment.engines.values(), deployment.network.lenders["a"]
    async with busy(a), busy(b):
        own = await waiting(b) if reason == "busy" else None
        asked = await waiting(a)
        assert not await lender.lend_once()
        assert ("b", "accept") not in deployment.network.calls
        assert ("b", "status") in deployment.network.calls
    await assert_rewards(deployment, asked)
    if own is not None:
        await own


async def test_what_a_dead_peer_had_is_computed_here(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    deployment.network.lost.add(("b", "accept"))
    async with burst_at_a(deployment) as (a, lender):
        assert await lender.lend_once()
        assert a.batcher.queued_items < NUM_ITEMS
        deployment.network.dead.add("b")
        clock.now += 1  # its word is old
        assert not await lender.lend_once()
        assert a.batcher.queued_items == NUM_ITEMS
        num_calls = len(deployment.network.calls)
        assert not await lender.lend_once()  # it is not asked again for a while
        assert len(deployment.network.calls) == num_calls


async def test_an_engine_that_is_let_go_takes_no_loan_of_the_next_one_along(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    async with burst_at_a(deployment) as (a, lender):
        assert await lender.lend_once()
        lender.forget()  # the engine before has answered its last request
        await until(lambda: not lender.has_loans)
        assert a.batcher.queued_items < NUM_ITEMS


async def test_loans_of_an_engine_that_serves_no_more_are_let_go(
    deploy: Callable[..., Deployment], make_engine: Callable[..., Any], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    await meet(deployment)
    a, lender = deployment.engines["a"], deployment.network.lenders["a"]
    deployment.network.lost.add(("b", "accept"))
    with suppress(InternalError):  # the engine before is closed with requests on it
        async with busy(a):
            asked = await waiting(a)
            assert await lender.lend_once()
            await deployment.slots["a"].put(make_engine("causal_lm", ["endogenous"]))
            lender.forget()
            assert not lender.has_loans
    with pytest.raises(InternalError):
        await asked


async def test_a_late_loan_is_taken_back_its_answer_ignored_and_its_peer_shunned(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    deployment.network.lost.add(("a", "repay"))
    async with burst_at_a(deployment) as (a, lender):
        assert await lender.lend_once()
        await until(lambda: ("a", "repay") in deployment.network.calls)
        assert a.batcher.queued_items < NUM_ITEMS
        clock.now += 1
        await lender.lend_once()
        assert a.batcher.queued_items < NUM_ITEMS
        clock.now += 31
        assert not await lender.lend_once()
        assert a.batcher.queued_items == NUM_ITEMS
        assert not lender.has_loans
        assert not await lender.lend_once()


async def test_a_loan_that_a_peer_fails_to_compute_is_refused_and_computed_here(
    deploy: Callable[..., Deployment], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy("a", "b")
    async with burst_at_a(deployment) as (a, lender):

        async def fail(self: Any, loan: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(Lending, "compute", fail)
        assert await lender.lend_once()
        await until(lambda: not lender.has_loans)
        assert a.batcher.queued_items == NUM_ITEMS


@pytest.mark.parametrize("method", ["accept", "repay"])
async def test_what_cannot_be_sent_or_read_is_computed_here(
    deploy: Callable[..., Deployment],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    deployment = deploy("a", "b")
    async with burst_at_a(deployment) as (a, lender):
        real = deployment.network.call

        async def call(address: str, name: str, *args: Any) -> Any:
            if name == method == "accept":
                raise TypeError("it cannot be pickled")
            if name == method:
                args = (Repayment(*args[0][:2], 7), *args[1:])
            return await real(address, name, *args)

        monkeypatch.setattr(deployment.network, "call", call)
        with suppress(TypeError):
            assert await lender.lend_once()
        await until(lambda: not lender.has_loans)
        assert a.batcher.queued_items == NUM_ITEMS
        assert not await lender.lend_once()  # the peer gets nothing for a while
    assert ("a repayment cannot be read" in caplog.text) == (method == "repay")


async def test_a_replica_that_stops_lends_all_that_waits(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    deployment.network.stopping.add("a")
    async with burst_at_a(deployment) as (a, lender):
        while a.batcher.queued_items:
            await lender.lend_once()
            await until(lambda: not lender.has_loans)
        assert a.batcher.queued_tokens == 0


async def test_a_peer_that_stops_gets_nothing_and_may_still_repay(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    await meet(deployment)
    a, b = deployment.engines.values()
    lender = deployment.network.lenders["a"]
    async with busy(a):
        async with busy(b):
            asked = await waiting(a)
            assert await lender.lend_once()
            deployment.network.stopping.add("b")
            clock.now += 3
            assert not await lender.lend_once()
            assert lender.has_loans
        await until(lambda: not lender.has_loans)
        num_left = a.batcher.queued_items
        assert num_left < NUM_ITEMS
        assert not await lender.lend_once()
        assert a.batcher.queued_items == num_left
    await assert_rewards(deployment, asked)


async def test_peers_are_remembered_while_nobody_can_say_who_they_are(
    deploy: Callable[..., Deployment], clock: Clock
) -> None:
    deployment = deploy("a", "b")
    async with burst_at_a(deployment) as (a, lender):
        assert await lender.lend_once()
        await until(lambda: not lender.has_loans)
        deployment.network.is_unknown = True
        clock.now += 3
        num_left = a.batcher.queued_items
        assert await lender.lend_once()
        await until(lambda: not lender.has_loans)
        assert 0 < a.batcher.queued_items < num_left  # half at most: it does not stop


async def test_loops_share_a_burst_and_outlive_a_fault(
    deploy: Callable[..., Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deploy("a", "b", "c")
    monkeypatch.undo()  # real time
    lenders = deployment.network.lenders.values()
    faults = [RuntimeError("no")]

    async def addresses() -> list[str]:
        if faults:
            raise faults.pop()
        return list(deployment.network.lenders)

    monkeypatch.setattr(deployment.network.lenders["a"].peers, "addresses", addresses)
    tasks = [asyncio.create_task(lender.run_forever()) for lender in lenders]
    a = deployment.engines["a"]
    async with busy(a):
        asked = await waiting(a)
        await until(lambda: a.batcher.queued_items <= 1)
        assert not faults
    await assert_rewards(deployment, asked)
    for task in tasks:
        task.cancel()


async def test_a_fault_that_stays_is_logged_once(
    deploy: Callable[..., Deployment],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lender, faults = deploy("a").network.lenders["a"], 0

    async def lend_once() -> bool:
        nonlocal faults
        faults += 1
        raise RuntimeError("no")

    monkeypatch.setattr(lender, "lend_once", lend_once)
    task = asyncio.create_task(lender.run_forever())
    await until(lambda: faults == 3)
    assert caplog.text.count("lending failed") == 1
    task.cancel()
