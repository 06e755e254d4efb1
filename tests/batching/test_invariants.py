"""Whatever happens to a queue, in whatever order: its counts are right, nothing is lost, nothing
comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.queues import Labelled, next_batch
from tokenreward.batching import Batcher
from tokenreward.errors import DeadlineExceededError, InternalError, LargerThanQueue, Overloaded

MAX_TOKENS, MAX_REQUESTS, MAX_QUEUED = 10, 3, 30

SIZES = st.lists(st.integers(0, 14), max_size=5)
STEPS = st.lists(
    st.tuples(st.just("submit"), SIZES)
    | st.tuples(st.just("take"), st.none())
    | st.tuples(st.just("leave"), st.integers(0, 30))
    | st.tuples(st.just("expire"), st.integers(0, 30))
    | st.tuples(st.just("lend"), st.integers(0, 20))
    | st.tuples(st.just("settle"), st.integers(0, 30))
    | st.tuples(st.just("take_back"), st.integers(0, 30))
    | st.tuples(st.just("fail"), st.none()),
    max_size=30,
)


def answered(entry: Labelled) -> object:
    """The error that an entry's caller got; the class alone of one that the batcher made."""
    error = entry.future.exception()
    return type(error) if isinstance(error, DeadlineExceededError) else error


class Model:
    """A queue kept as a plain list, and the one under test beside it."""

    def __init__(self, make: Callable[..., Batcher[Labelled]], clock: Any) -> None:
        self.real = make(tokens=MAX_TOKENS, requests=MAX_REQUESTS, queue=MAX_QUEUED)
        self.clock = clock
        self.waiting: list[Labelled] = []  # in the order of arrival
        self.loans: list[Labelled] = []
        self.arrivals: dict[Labelled, int] = {}

    async def run(self, step: str, argument: Any) -> None:
        await getattr(self, step)(argument)
        waiting_tokens = sum(entry.num_tokens for entry in self.real.waiting)
        assert self.real.waiting_tokens == waiting_tokens
        loan_tokens = self.real.queued_tokens - waiting_tokens
        alive = [entry for entry in self.loans if not self.is_gone(entry)]
        assert sum(entry.num_tokens for entry in alive) <= loan_tokens
        assert loan_tokens <= sum(entry.num_tokens for entry in self.loans)
        assert self.real.queued_items >= len(self.alive())
        assert self.real.queued_tokens <= MAX_QUEUED

    def alive(self) -> list[Labelled]:
        return [entry for entry in self.waiting if not self.is_gone(entry)]

    def is_gone(self, entry: Labelled) -> bool:
        return entry.future.done() or (entry.deadline or 0) <= self.clock.now

    async def submit(self, sizes: list[int]) -> None:
        loop = asyncio.get_running_loop()
        entries = [Labelled(work="", num_tokens=size) for size in sizes]
        for entry in entries:
            entry.wait(loop.create_future(), self.clock.now + 1e6)
        before = self.real.queued_tokens, self.real.queued_items
        queued = [*self.alive(), *(entry for entry in self.loans if not self.is_gone(entry))]
        fits = sum(sizes) + sum(entry.num_tokens for entry in queued) <= MAX_QUEUED
        try:
            self.real.submit(entries)
        except LargerThanQueue:
            assert sum(sizes) > MAX_QUEUED
            assert before == (self.real.queued_tokens, self.real.queued_items)
        except Overloaded:
            assert not fits
            assert [id(e) for e in self.real.waiting] == [id(e) for e in self.alive()]
        else:
            assert fits
            self.waiting += entries
            self.arrivals.update((entry, len(self.arrivals)) for entry in entries)

    async def take(self, _: None) -> None:
        expected: list[Labelled] = []
        for entry in self.alive():
            total = sum(e.num_tokens for e in expected) + entry.num_tokens
            if len(expected) < MAX_REQUESTS and (not expected or total <= MAX_TOKENS):
                expected.append(entry)
            if sum(e.num_tokens for e in expected) >= MAX_TOKENS:
                break
        batch = asyncio.ensure_future(next_batch(self.real))
        for _turn in range(3):
            await asyncio.sleep(0)
        if not expected:
            assert not batch.done()
            batch.cancel()
            return
        assert [id(entry) for entry in await batch] == [id(entry) for entry in expected]
        self.waiting = [entry for entry in self.waiting if entry not in expected]

    async def lend(self, max_tokens: int) -> None:
        waits = self.real.waiting_tokens
        loan = self.real.lend(max_tokens)
        tokens = [entry.num_tokens for entry in loan]
        assert 2 * sum(tokens) <= waits
        assert sum(tokens) <= max_tokens or len(tokens) == 1
        assert len(loan) <= MAX_REQUESTS
        may_leave = [entry for entry in self.alive() if not entry.stays]
        assert loan == may_leave[::-1][: len(loan)]
        self.waiting = [entry for entry in self.waiting if entry not in loan]
        self.loans += loan

    async def settle(self, index: int) -> None:
        if self.loans:
            entry = self.loans.pop(index % len(self.loans))
            assert self.real.settle(entry) or self.is_gone(entry)
            assert not self.real.settle(entry)
            if not entry.future.done():
                entry.future.set_result(None)

    async def take_back(self, index: int) -> None:
        if self.loans:
            entry = self.loans.pop(index % len(self.loans))
            self.real.take_back([entry])
            self.waiting = sorted([*self.waiting, entry], key=self.arrivals.__getitem__)

    async def leave(self, index: int) -> None:
        if entries := self.waiting + self.loans:
            entries[index % len(entries)].future.cancel()

    async def expire(self, index: int) -> None:
        if entries := self.waiting + self.loans:
            entries[index % len(entries)].deadline = self.clock.now

    async def fail(self, _: None) -> None:
        error = InternalError("lost")
        self.real.fail_all(error)
        for entry in self.waiting + self.loans:
            if entry.future.done() or not self.is_gone(entry):
                assert entry.future.cancelled() or answered(entry) in (error, DeadlineExceededError)
        assert (self.real.queued_items, self.real.queued_tokens) == (0, 0)
        self.waiting, self.loans = [], []


@pytest.fixture
def model(batcher: Callable[..., Batcher[Labelled]], clock: Any) -> Callable[[], Model]:
    return lambda: Model(batcher, clock)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=STEPS)
def test_any_sequence_of_events_leaves_the_queue_as_a_plain_list_would(
    model: Callable[[], Model], steps: list[tuple[str, Any]]
) -> None:
    async def play() -> None:
        queue = model()
        for step, argument in steps:
            await queue.run(step, argument)
        while queue.loans:
            await queue.run("take_back", 0)
        while queue.alive():
            await queue.run("take", None)
        await queue.run("take", None)  # drops whoever is gone
        assert (queue.real.queued_items, queue.real.queued_tokens) == (0, 0)
        for entry in queue.waiting:
            assert entry.future.cancelled() or answered(entry) is DeadlineExceededError

    asyncio.run(play())
