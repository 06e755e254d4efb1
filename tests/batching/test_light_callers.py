"""A caller of little beside one with more than a batch waiting: batches are shorter, so that it
waits for little more than its own work. A simulated device, whose time is the test's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import numpy as np
import pytest

from batching.conftest import Clock
from fakes.queues import Labelled, MakeBatcher, MakeEntry
from tokenreward.batching import Batcher

BATCH, RATE = 4096, 20_000.0
PASS_S = 0.005  # of a batch, beside its tokens
HTTP_S = 0.01  # of a request, beside its batch
SMALL, LARGE = 60, 220  # tokens


@pytest.fixture
def full(batcher: MakeBatcher) -> Batcher[Labelled]:
    """A batcher that has seen how fast batches go."""
    queue = batcher(tokens=BATCH, requests=1000, queue=10**6)
    queue.note_rate(BATCH, BATCH / RATE)
    return queue


class Device:
    """Runs batches one after the other, and moves the clock."""

    def __init__(self, queue: Batcher[Labelled], clock: Clock) -> None:
        self._queue, self._clock = queue, clock
        self.num_tokens, self.began = 0, clock.now

    def run(self) -> list[Labelled]:
        jobs = self._queue.take()
        num_tokens = sum(job.num_tokens for job in jobs)
        self._clock.now += PASS_S + num_tokens / RATE
        self.num_tokens += num_tokens
        for job in jobs:
            job.future.set_result(None)
        return jobs

    @property
    def rate(self) -> float:
        return self.num_tokens / (self._clock.now - self.began)


def latencies(
    queue: Batcher[Labelled], clock: Clock, entry: MakeEntry, *, has_flood: bool
) -> tuple[list[float], float]:
    """Of a small caller's 200 requests, one 50 ms after the answer to the one before; and the
    device's tokens a second."""
    device, taken = Device(queue, clock), []
    for number in range(200):
        arrives = clock.now + 0.05 + 0.0071 * (number % 7)
        small: Labelled | None = None
        while small is None or not small.future.done():
            if has_flood and queue.queued_tokens < 3 * BATCH:
                queue.submit([entry("f", LARGE, caller="flood") for _ in range(64)])
            if small is None and (clock.now >= arrives or not queue.queued_items):
                clock.now = max(clock.now, arrives)
                small = entry("s", SMALL, caller="small")
                queue.submit([small])
            device.run()
        taken.append(HTTP_S + clock.now - arrives)
    return taken, device.rate


async def test_the_p99_of_a_small_caller_beside_a_flood_is_at_most_ten_times_its_p99_alone(
    full: Batcher[Labelled], clock: Clock, entry: MakeEntry
) -> None:
    alone, _ = latencies(full, clock, entry, has_flood=False)
    beside, rate = latencies(full, clock, entry, has_flood=True)
    assert np.percentile(beside[1:], 99) <= 10 * np.percentile(alone, 99)
    assert rate >= 0.85 * RATE  # of its 0.976 in full batches


async def batch_of(queue: Batcher[Labelled]) -> list[str]:
    await asyncio.sleep(0)
    return [entry.work for entry in queue.take()]


async def test_a_flood_by_itself_and_many_callers_of_little_have_full_batches(
    full: Batcher[Labelled], clock: Clock, entry: MakeEntry
) -> None:
    full.submit([entry("f", LARGE, caller="flood") for _ in range(100)])
    assert len(await batch_of(full)) == BATCH // LARGE
    clock.now += 31
    full.fail_all(ValueError())
    callers: list[Hashable] = [*range(100)]
    for caller in callers:
        full.submit([entry("s", LARGE, caller=caller)])
    assert len(await batch_of(full)) == BATCH // LARGE


async def test_batches_are_short_while_a_caller_of_little_is_there_and_for_a_while_after(
    full: Batcher[Labelled], clock: Clock, entry: MakeEntry
) -> None:
    full.submit([entry("f", LARGE, caller="flood") for _ in range(500)])
    full.submit([entry("s", SMALL, caller="small")])
    assert (await batch_of(full)).count("f") == (1000 - SMALL) // LARGE
    clock.now += 29
    assert len(await batch_of(full)) == 1000 // LARGE
    clock.now += 2
    assert len(await batch_of(full)) == BATCH // LARGE


async def test_a_caller_of_little_that_floods_the_queue_next_has_full_batches(
    full: Batcher[Labelled], clock: Clock, entry: MakeEntry
) -> None:
    full.submit([entry("s", SMALL, caller="flood")])
    full.submit([entry("f", LARGE, caller="flood") for _ in range(100)])
    assert len(await batch_of(full)) == 1 + (BATCH - SMALL) // LARGE


async def test_a_group_of_one_prompt_is_not_cut_for_a_caller_of_little(
    full: Batcher[Labelled], clock: Clock, entry: MakeEntry
) -> None:
    group = [entry("f", 1000, prompt="p", shared=900, caller="flood") for _ in range(16)]
    full.submit([*group, *(entry("g", LARGE, caller="flood") for _ in range(100))])
    full.submit([entry("s", SMALL, caller="small")])
    assert await batch_of(full) == ["f"] * 16
    assert (await batch_of(full))[0] == "s"


async def test_a_slow_device_has_batches_of_a_sixteenth_at_least(
    batcher: MakeBatcher, clock: Clock, entry: MakeEntry
) -> None:
    queue = batcher(tokens=BATCH, queue=10**6)
    queue.note_rate(100, 1.0)
    queue.submit([entry("s", 5, caller="small")])
    queue.submit([entry("f", 16, caller="flood") for _ in range(500)])
    assert (await batch_of(queue)).count("f") == 15
