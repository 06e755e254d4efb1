"""What is in the next batch: whatever waits, in order of arrival, up to a budget, and only what
somebody waits for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from fakes.queues import Labelled, MakeBatcher, MakeEntry, next_batch
from tokenreward.batching import Batcher
from tokenreward.errors import DeadlineExceededError, InternalError


async def works(batcher: Batcher[Labelled]) -> str:
    """The next batch, a letter per entry."""
    async with asyncio.timeout(1):
        return "".join(entry.work for entry in await next_batch(batcher))


def line(entry: MakeEntry, **num_tokens: int) -> list[Labelled]:
    return [entry(work, size) for work, size in num_tokens.items()]


async def test_what_waits_leaves_in_one_batch_in_order_of_arrival(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    queue.submit(line(entry, a=1, b=2))
    queue.submit(line(entry, c=3))
    assert await works(queue) == "abc"


async def test_a_batch_may_fill_the_token_budget_to_the_last_token_and_no_further(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit(line(entry, a=4, b=6, c=1))
    assert [await works(queue), await works(queue)] == ["ab", "c"]


async def test_what_fits_goes_before_what_does_not_but_the_oldest_is_always_taken(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit(line(entry, a=6, b=5, c=1, d=6, e=3))
    assert [await works(queue), await works(queue), await works(queue)] == ["ace", "b", "d"]


async def test_an_entry_that_was_passed_over_long_enough_lets_nobody_before_it(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher(tokens=10)
    queue.submit(line(entry, a=6, b=5))
    clock.now += 0.5
    queue.submit(line(entry, c=1))
    assert [await works(queue), await works(queue)] == ["a", "bc"]


async def test_entries_that_share_a_prompt_stand_together_and_pay_for_it_once(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    group = [entry(work, 5, prompt="p", shared=4) for work in "ace"]
    queue.submit([group[0], entry("b", 4, prompt="q", shared=3), group[1], entry("d", 1), group[2]])
    assert queue.queued_tokens == 20
    assert [await works(queue), await works(queue)] == [
        "acde",
        "b",
    ]  # 5 + 1 + 1 for the group, 4 for b would be 11
    assert queue.queued_tokens == 0


async def test_a_look_ahead_is_bounded(entry: MakeEntry, batcher: MakeBatcher) -> None:
    queue = batcher(tokens=10, requests=2, queue=10_000)
    queue.submit([entry("a", 6), *(entry("b", 9) for _ in range(300)), entry("c", 1)])
    assert await works(queue) == "a"


async def test_no_entry_waits_behind_younger_ones_for_longer_than_its_place_in_the_queue(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    """Each batch takes the oldest, so a large entry goes at the latest when those before it have
    gone."""
    queue = batcher(tokens=10)
    queue.submit(line(entry, a=6, b=9))
    order = []
    for _ in range(2):
        queue.submit(line(entry, x=4))
        order.append(await works(queue))
    assert order == ["ax", "b"]


async def test_a_batch_holds_at_most_the_budgeted_number_of_requests(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(requests=2)
    queue.submit(line(entry, a=1, b=1, c=1, d=1, e=1))
    assert [await works(queue) for _ in range(3)] == ["ab", "cd", "e"]


@pytest.mark.parametrize("neighbour", [0, 1])
async def test_an_entry_larger_than_the_budget_goes_alone(
    entry: MakeEntry, batcher: MakeBatcher, neighbour: int
) -> None:
    queue = batcher(tokens=10)
    queue.submit(line(entry, a=1, b=11, c=neighbour))
    assert [await works(queue) for _ in range(2)] == ["ac", "b"]


async def test_an_entry_whose_caller_has_gone_is_dropped_and_takes_no_budget(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10, requests=2)
    entries = line(entry, a=5, b=5, c=5)
    queue.submit(entries)
    entries[1].future.cancel()
    assert await works(queue) == "ac"
    assert (queue.queued_items, queue.queued_tokens) == (0, 0)


async def test_an_entry_that_is_gone_does_not_close_a_batch_that_it_would_not_fit(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    entries = line(entry, a=5, b=9, c=5)
    queue.submit(entries)
    entries[1].future.cancel()
    assert await works(queue) == "ac"


async def test_an_expired_entry_is_answered_and_not_computed(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher()
    late, early = entry("a", 1, deadline=clock.now + 5), entry("b", 1, deadline=clock.now + 6)
    queue.submit([late, early])
    clock.now += 5
    assert await works(queue) == "b"
    assert isinstance(late.future.exception(), DeadlineExceededError)
    assert not early.future.done()


async def test_an_entry_without_a_deadline_waits_for_ever(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher()
    queue.submit([entry("a", 1)])
    clock.now += 1e9
    assert await works(queue) == "a"


async def test_a_queue_of_the_gone_alone_gives_no_batch_and_waits_on(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher()
    gone, expired = entry("a", 1), entry("b", 2, deadline=clock.now)
    queue.submit([gone, expired])
    gone.future.cancel()
    batch = asyncio.ensure_future(works(queue))
    await asyncio.sleep(0.01)
    assert not batch.done()
    assert isinstance(expired.future.exception(), DeadlineExceededError)
    queue.submit([entry("c", 1)])
    assert await batch == "c"


async def test_an_empty_request_wakes_nobody(entry: MakeEntry, batcher: MakeBatcher) -> None:
    queue = batcher()
    queue.submit([])
    batch = asyncio.ensure_future(works(queue))
    await asyncio.sleep(0.01)
    assert not batch.done()
    queue.submit([entry("a", 1)])
    assert await batch == "a"


async def test_work_that_arrives_while_the_device_is_idle_is_taken_at_once(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    batch = asyncio.ensure_future(works(queue))
    await asyncio.sleep(0)
    queue.submit([entry("a", 1)])
    for _ in range(3):  # turns of the event loop, no timer
        await asyncio.sleep(0)
    assert batch.done()
    assert await batch == "a"


async def test_work_that_arrives_while_a_batch_runs_is_the_next_batch(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    queue.submit(line(entry, a=1))
    assert await works(queue) == "a"
    queue.submit(line(entry, b=1))
    queue.submit(line(entry, c=1))
    assert await works(queue) == "bc"


async def test_a_wait_that_is_cancelled_loses_nothing(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    waiting = asyncio.ensure_future(next_batch(queue))
    await asyncio.sleep(0)
    waiting.cancel()
    queue.submit(line(entry, a=1))
    assert await works(queue) == "a"


async def test_fail_all_answers_everybody_who_waits_and_forgets_them(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    entries = line(entry, a=1, b=2, c=3)
    queue.submit(entries)
    entries[1].future.cancel()
    error = InternalError("the device is lost")
    queue.fail_all(error)
    assert entries[0].future.exception() is entries[2].future.exception() is error
    assert entries[1].future.cancelled()
    assert (queue.queued_items, queue.queued_tokens) == (0, 0)


async def test_after_fail_all_new_work_is_taken_and_none_of_the_old(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    old = entry("a", 1)
    queue.submit([old])
    queue.fail_all(InternalError("lost"))
    assert isinstance(old.future.exception(), InternalError)
    queue.submit([entry("b", 1)])
    assert await works(queue) == "b"


async def test_another_thread_takes_what_waits_and_answers_the_expired_on_their_own_loop(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher()
    late, early = entry("a", 1, deadline=clock.now), entry("b", 1)
    queue.submit([late, early])
    assert await asyncio.to_thread(queue.take) == [early]
    async with asyncio.timeout(1):
        with pytest.raises(DeadlineExceededError):
            await late.future
    assert await asyncio.to_thread(queue.take) == []
    batch = asyncio.ensure_future(works(queue))
    await asyncio.sleep(0.01)
    assert not batch.done()
    queue.submit([entry("c", 1)])
    assert await batch == "c"


async def test_threads_that_take_while_others_submit_lose_nothing_and_take_nothing_twice(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=3, queue=10**6)
    entries_taken: list[Labelled] = []
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set() or queue.queued_items:
            entries_taken.extend(queue.take())

    threads = [asyncio.to_thread(take) for _ in range(2)]
    taking = asyncio.gather(*threads)
    entries = [entry("a", 1) for _ in range(3000)]
    for start in range(0, 3000, 3):
        queue.submit(entries[start : start + 3])
        if start % 300 == 0:
            await asyncio.sleep(0.001)
    stop.set()
    await taking
    assert sorted(map(id, entries_taken)) == sorted(map(id, entries))
    assert queue.queued_tokens == 0
