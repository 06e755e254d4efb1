"""Callers take turns by tokens: a flood waits behind itself, and nobody else waits behind it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import Hashable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.queues import Labelled, MakeBatcher, MakeEntry
from tokenreward.batching import Batcher


def flood(entry: MakeEntry, caller: Hashable, *sizes: int) -> list[Labelled]:
    """Entries of one caller, called by its name."""
    return [entry(str(caller), size, caller=caller) for size in sizes]


def works(queue: Batcher[Labelled]) -> str:
    """The next batch, a letter per entry."""
    return "".join(entry.work for entry in queue.take())


async def test_one_entry_goes_before_the_flood_of_another_caller(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit(flood(entry, "f", *[5] * 100))
    assert works(queue) == "ff"
    queue.submit(flood(entry, "s", 5))
    assert works(queue) == "fs"
    assert works(queue) == "ff"


async def test_a_new_caller_is_not_paid_for_the_time_before_it_came(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit(flood(entry, "a", *[10] * 20))
    for _ in range(10):
        assert works(queue) == "a"
    queue.submit(flood(entry, "b", *[10] * 10))
    assert Counter(works(queue) for _ in range(10)) == {"a": 5, "b": 5}


async def test_neighbours_that_share_a_prompt_stay_together(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=100, requests=4)
    queue.submit([entry("a", 5, prompt="p", shared=4, caller="a") for _ in range(4)])
    queue.submit([entry("b", 5, prompt="q", shared=4, caller="b") for _ in range(4)])
    assert [works(queue), works(queue)] == ["aaaa", "bbbb"]


async def test_a_flood_of_one_prompt_is_no_single_turn(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=8)  # a prompt of 4, and four entries of one token each
    queue.submit([entry("f", 5, prompt="p", shared=4, caller="f") for _ in range(100)])
    assert works(queue) == "ffff"
    queue.submit(flood(entry, "s", 4))
    batches = [works(queue) for _ in range(3)]
    assert "s" in "".join(batches)
    assert batches[0] in ("s", "ffff")  # the group of one prompt is not cut


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(1, 10), min_size=30, max_size=30), min_size=2
    )
)
def test_callers_who_have_work_get_equal_tokens(
    entry: MakeEntry, batcher: MakeBatcher, sizes: dict[str, list[int]]
) -> None:
    async def play() -> None:
        queue = batcher(tokens=10, queue=10_000)
        for caller, numbers in sizes.items():
            queue.submit(flood(entry, caller, *numbers))
        left = {caller: len(numbers) for caller, numbers in sizes.items()}
        tokens: Counter[str] = Counter()
        while all(left.values()):
            for each in queue.take():
                left[each.work] -= 1
                tokens[each.work] += each.num_tokens
        # Start-time fair queueing: no two callers are further apart than an entry of each. A batch
        # passes over what does not fit, which is an entry more.
        assert max(tokens.values()) - min(tokens[caller] for caller in sizes) <= 3 * 10

    asyncio.run(play())


async def test_callers_who_left_are_forgotten(entry: MakeEntry, batcher: MakeBatcher) -> None:
    class Caller:
        """Something that a reference can watch."""

    queue = batcher(tokens=10, queue=100_000)
    queue.submit(flood(entry, "f", *[9] * 4000))
    caller: Any = Caller()
    watch = weakref.ref(caller)
    queue.submit([entry("w", 1, caller=caller)])
    del caller
    for number in range(3000):
        queue.submit([entry("x", 1, caller=number)])
        queue.take()
    gc.collect()
    assert watch() is None


async def test_whoever_comes_now_waits_for_nobody_but_an_entry_that_was_passed_over(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit(flood(entry, "f", 6, 6, 6, 4))
    assert [each.num_tokens for each in queue.take()] == [6, 4]
    queue.submit(flood(entry, "s", 6))
    assert [works(queue), works(queue), works(queue)] == ["f", "s", "f"]


async def test_new_callers_without_end_are_forgotten_while_another_waits(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    class Caller:
        """Something that a reference can watch."""

    queue = batcher(tokens=10, queue=100_000)
    queue.submit(flood(entry, "f", 9, 9))
    watches = []
    for _ in range(3000):
        caller: Any = Caller()
        watches.append(weakref.ref(caller))
        queue.submit([entry("x", 9, caller=caller)])
        del caller
        queue.take()
    gc.collect()
    assert sum(watch() is not None for watch in watches) < 2000


async def test_new_callers_without_end_do_not_hold_up_the_ones_before_them(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit(flood(entry, "f", *[10] * 20))
    order = ""
    for number in range(60):  # a caller of its own comes as often as a batch leaves
        queue.submit([entry("x", 10, caller=number)])
        order += works(queue)
    assert order.count("f") >= 8  # its share falls as more and more callers wait


async def test_a_caller_whose_entries_have_gone_does_not_wait_for_them(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    gone = flood(entry, "g", *[10] * 20)
    queue.submit([entry("f", 10, caller="f"), *gone, *flood(entry, "f", *[10] * 5)])
    assert works(queue) == "f"
    for each in gone:
        each.future.cancel()
    assert works(queue) == "f"
    queue.submit(flood(entry, "g", 10))
    assert "g" in works(queue) + works(queue)
