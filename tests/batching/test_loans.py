"""What another replica may compute: entries whose turns come last, half of what waits at most,
whole groups of one prompt. They count for admission, and come back with their own turns."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.queues import Labelled, MakeBatcher, MakeEntry
from tokenreward.errors import DeadlineExceededError, InternalError, Overloaded


def works(entries: list[Labelled]) -> str:
    """A letter per entry."""
    return "".join(entry.work for entry in entries)


async def test_the_last_turns_are_lent_and_half_of_what_waits_at_most(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit([entry(work, 5) for work in "abcdef"])
    assert works(queue.lend(100)) == "fed"
    assert works(queue.lend(100)) == "c"
    assert works(queue.lend(100)) == "b"
    assert queue.lend(100) == []
    assert works(queue.take()) == "a"


async def test_a_loan_is_one_batch_of_the_other_replica(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(requests=3)
    queue.submit([entry(work, 5) for work in "abcdefghijklmnop"])
    assert works(queue.lend(12)) == "po"
    assert works(queue.lend(100)) == "nml"
    assert works(queue.lend(1)) == "k"  # larger than the batch: alone


async def test_a_replica_that_leaves_lends_all(entry: MakeEntry, batcher: MakeBatcher) -> None:
    queue = batcher()
    queue.submit([entry(work, 5) for work in "abc"])
    assert works(queue.lend(10, lends_all=True)) == "cb"
    assert works(queue.lend(10, lends_all=True)) == "a"


async def test_a_group_of_one_prompt_is_not_cut_unless_there_is_no_other(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    of_a = [entry("a", 10, prompt="p", shared=8) for _ in range(4)]
    of_b = [entry("b", 10, prompt="q", shared=8) for _ in range(4)]
    queue.submit([*of_a, *of_b, entry("c", 5)])
    assert works(queue.lend(20)) == "c"  # with two of the group that would be 17
    assert works(queue.lend(16)) == "bbbb"  # 10 and three times 2
    assert works(queue.lend(16)) == "aa"  # half of what waits


async def test_an_entry_that_cannot_travel_stays_and_others_go(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=100)
    queue.submit([entry(work, 5) for work in "abcdef"])
    assert works(queue.lend(100, accepts=lambda each: each.work != "e")) == "fdc"
    assert works(queue.take()) == "abe"


async def test_loans_count_for_admission_and_do_not_wait(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(queue=10)
    queue.submit([entry("a", 5), entry("b", 5)])
    (loan,) = queue.lend(10)
    assert (queue.queued_tokens, queue.waiting_tokens, queue.queued_items) == (10, 5, 1)
    with pytest.raises(Overloaded):
        queue.submit([entry("c", 1)])
    with pytest.raises(Overloaded):
        queue.refuse_if_full()
    assert queue.settle(loan)
    queue.submit([entry("c", 5)])
    assert not queue.settle(loan)


async def test_a_loan_that_comes_back_has_its_own_turn_and_stays(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit([entry(work, 5) for work in "abcd"])
    loan = queue.lend(100)
    queue.submit([entry("e", 5), entry("f", 5)])
    queue.take_back(loan)
    assert works(queue.waiting) == "abcdef"
    assert works(queue.lend(100)) == "feb"
    assert works(queue.lend(100)) == "a"
    assert queue.lend(100) == []
    assert works(queue.take()) == "cd"


async def test_a_caller_whose_entries_are_on_loan_is_served_by_its_turn_afterwards(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit([entry("f", 10, caller="f") for _ in range(8)])
    queue.submit([entry("s", 10, caller="s")])
    loan = queue.lend(40)
    assert works(loan) == "ffff"
    queue.submit([entry("g", 10, caller="f")])  # behind all of its caller's, also those on loan
    queue.take_back(loan)
    assert works(queue.waiting) == "fs" + "f" * 7 + "g"


async def test_what_a_caller_sends_next_is_behind_all_that_came_back(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher(tokens=10)
    queue.submit([entry("f", 10, caller="f") for _ in range(4)])
    queue.take_back(queue.lend(100, lends_all=True))
    queue.submit([entry("g", 10, caller="f")])
    assert works(queue.waiting) == "ffffg"


async def test_a_caller_who_has_gone_is_not_lent_and_does_not_come_back(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue = batcher()
    entries = [entry(work, 5) for work in "abcdef"]
    queue.submit(entries)
    entries[5].future.cancel()
    loan = queue.lend(100)
    assert works(loan) == "ed"
    loan[0].future.cancel()
    queue.take_back(loan)
    assert works(queue.waiting) == "abcd"
    assert queue.queued_tokens == 20


async def test_a_loan_whose_deadline_passes_makes_room_and_is_answered(
    entry: MakeEntry, batcher: MakeBatcher, clock: Any
) -> None:
    queue = batcher(queue=10)
    queue.submit([entry("a", 5), entry("b", 5, deadline=clock.now + 1)])
    (loan,) = queue.lend(10)
    clock.now += 1
    queue.submit([entry("c", 5)])
    assert isinstance(loan.future.exception(), DeadlineExceededError)
    queue.take_back([loan])
    assert works(queue.waiting) == "ac"


async def test_a_queue_that_fails_answers_its_loans_too(
    entry: MakeEntry, batcher: MakeBatcher
) -> None:
    queue, error = batcher(), InternalError("closing")
    queue.submit([entry("a", 5), entry("b", 5)])
    (loan,) = queue.lend(10)
    queue.fail_all(error)
    assert loan.future.exception() is error
    assert queue.queued_tokens == 0
    queue.take_back([loan])
    assert queue.queued_items == 0
