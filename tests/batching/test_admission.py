"""Who is let in: requests as a whole, by tokens; whoever is not leaves the queue as it was and
hears when to return."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.queues import Labelled, MakeBatcher, MakeEntry, next_batch
from tokenreward.batching import Batcher
from tokenreward.errors import DeadlineExceededError, LargerThanQueue, Overloaded


async def test_a_request_may_fill_the_queue_to_the_last_token(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=10)
    queue.submit([entry("a", 4), entry("b", 6)])
    assert (queue.queued_items, queue.queued_tokens) == (2, 10)


async def test_a_request_that_no_empty_queue_could_hold_is_larger_than_queue(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=10)
    with pytest.raises(
        LargerThanQueue, match=r"counts for at least 11 tokens, `max_queued_tokens` is 10"
    ) as caught:
        queue.submit([entry("a", 4), entry("b", 7)])
    assert (caught.value.param, caught.value.retryable, caught.value.retry_after_s) == (
        "items",
        False,
        None,
    )
    assert (queue.queued_items, queue.queued_tokens) == (0, 0)


async def test_work_beside_the_tokens_counts_for_the_queue_and_not_for_a_batch(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=8, queue=10)
    entries = [entry("a", 4), entry("b", 4)]
    for each in entries:
        each.num_extra_tokens = 1
    queue.submit(entries)
    assert queue.queued_tokens == 10
    assert [waiting.work for waiting in await next_batch(queue)] == ["a", "b"]
    assert queue.queued_tokens == 0
    for each in entries:
        each.num_extra_tokens = 2
    with pytest.raises(
        LargerThanQueue, match="counts for at least 12 tokens, 4 of them for its many sc"
    ):
        queue.submit(entries)


async def test_a_request_that_finds_no_room_is_refused_as_a_whole_and_leaves_the_queue_unchanged(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=100, queue=10)
    queue.submit([entry("a", 8)])
    with pytest.raises(Overloaded, match=r"8 tokens wait and 3 more"):
        queue.submit([entry("b", 1), entry("c", 2)])
    assert (queue.queued_items, queue.queued_tokens) == (1, 8)
    queue.submit([entry("d", 2)])
    assert [waiting.work for waiting in await next_batch(queue)] == ["a", "d"]


async def test_a_caller_who_has_gone_makes_room_before_another_is_refused(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=10)
    gone = entry("a", 6)
    queue.submit([gone, entry("b", 4)])
    gone.future.cancel()
    queue.submit([entry("c", 6)])
    assert (queue.queued_items, queue.queued_tokens) == (2, 10)
    assert [waiting.work for waiting in await next_batch(queue)] == ["b", "c"]


async def test_an_expired_entry_makes_room_too_and_is_answered(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher(queue=10)
    expired = entry("a", 10, deadline=clock.now + 1)
    queue.submit([expired])
    clock.now += 1
    queue.submit([entry("b", 10)])
    assert isinstance(expired.future.exception(), DeadlineExceededError)
    assert queue.queued_tokens == 10


async def retry_after_s(
    queue: Batcher[Labelled], entry: MakeEntry, num_tokens: int
) -> float | None:
    with pytest.raises(Overloaded) as caught:
        queue.submit([entry("x", num_tokens)])
    return caught.value.retry_after_s


async def test_before_anything_was_measured_retry_after_is_a_second(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=100)
    queue.submit([entry("a", 100)])
    assert await retry_after_s(queue, entry, 100) == 1.0


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [(1, 1.0), (10, 1.0), (11, 2.0), (40, 4.0), (100, 10.0)],  # whole seconds, rounded up
)
async def test_retry_after_is_the_time_to_work_off_what_is_too_much(
    entry: MakeEntry, batcher: MakeBatcher, num_tokens: int, expected: float
) -> None:
    queue = batcher(queue=100)
    queue.submit([entry("a", 100)])
    queue.note_rate(20, 2.0)  # ten tokens a second
    assert await retry_after_s(queue, entry, num_tokens) == expected


async def test_only_what_does_not_fit_counts_towards_retry_after(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=100)
    queue.submit([entry("a", 70)])
    queue.note_rate(10, 1.0)
    assert await retry_after_s(queue, entry, 50) == 2.0


async def test_retry_after_is_never_more_than_a_minute(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=100)
    queue.submit([entry("a", 100)])
    queue.note_rate(1, 1e6)
    assert await retry_after_s(queue, entry, 100) == 60.0


@pytest.mark.parametrize(("num_tokens", "seconds"), [(0, 1.0), (0, 0.0), (10, 0.0)])
async def test_a_batch_of_no_tokens_or_no_time_spoils_no_estimate(
    entry: MakeEntry, batcher: MakeBatcher, num_tokens: int, seconds: float
) -> None:
    queue = batcher(queue=100)
    queue.submit([entry("a", 100)])
    queue.note_rate(num_tokens, seconds)
    assert await retry_after_s(queue, entry, 100) == 1.0


async def test_the_rate_follows_the_last_batches(entry: MakeEntry, batcher: MakeBatcher) -> None:
    queue = batcher(queue=100)
    queue.submit([entry("a", 100)])
    queue.note_rate(1000, 1.0)
    for _ in range(50):
        queue.note_rate(10, 1.0)
    assert await retry_after_s(queue, entry, 99) == 10.0


async def test_of_many_refused_callers_few_look_through_the_queue_and_the_gone_still_leave_it(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = batcher(queue=100)
    waiting = [entry("a", 1) for _ in range(100)]
    queue.submit(waiting)
    looked, is_gone = [], Labelled.is_gone

    def slow(one: Labelled) -> bool:
        looked.append(one)
        clock.now += 1e-5
        return is_gone(one)

    monkeypatch.setattr(Labelled, "is_gone", slow)
    for _ in range(50):
        clock.now += 1e-4
        with pytest.raises(Overloaded):
            queue.refuse_if_full()
        with pytest.raises(Overloaded):
            queue.submit([entry("b", 1)])
    assert len(looked) == 100
    waiting[7].future.cancel()
    clock.now += 0.021  # 20 times the millisecond that looking took
    queue.refuse_if_full()
    queue.submit([entry("b", 1)])
    assert (queue.queued_items, queue.queued_tokens) == (100, 100)
