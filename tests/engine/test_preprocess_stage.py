"""Requests take turns while they are tokenised, and one that is larger than the queue is refused
itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.web import until
from tokenreward import errors
from tokenreward.engine.preprocess import Preprocessor
from tokenreward.engine.preprocess_stage import ThreadQueue
from tokenreward.wire import Item, RewardsRequest, parse

MESSAGES = [{"role": "user", "content": "2+2?"}]
JOBS = Preprocessor.jobs


def request(prompt: Any, *, num_items: int = 1, **fields: Any) -> RewardsRequest:
    item = {"prompt": prompt, "response": "It is 4."}
    return parse(RewardsRequest, {"scorer": "endogenous", "items": [item] * num_items, **fields})


@pytest.fixture
def num_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The items that were tokenised, each of which takes at least 5 ms."""
    indices: list[int] = []

    def slowly(*arguments: Any) -> Iterator[Any]:
        for job in JOBS(*arguments):
            indices.append(job.index)
            time.sleep(0.005)
            yield job

    monkeypatch.setattr(Preprocessor, "jobs", slowly)
    return indices


async def test_messages_are_no_plain_objects_before_a_thread_has_the_request(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    threads: list[str] = []
    read = Item.messages.func

    def noted(item: Item) -> Any:
        threads.append(threading.current_thread().name)
        return read(item)

    monkeypatch.setattr(Item, "messages", property(noted))
    asked = request(MESSAGES)
    await engine.score(asked)
    assert threads
    assert all(name.startswith("preprocess") for name in threads)


async def test_a_small_request_is_not_behind_the_large_ones_of_another_caller(
    make_engine: Callable[..., Any], num_reads: list[int]
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    large = request(MESSAGES, num_items=600)  # 3 s of a thread
    floods = [asyncio.create_task(engine.score(large, caller="flood")) for _ in range(6)]
    await until(lambda: len(num_reads) > 4)
    for _ in range(3):
        began = time.monotonic()
        reply = await engine.score(request(MESSAGES), caller="small")
        assert reply.items[0].error is None
        assert time.monotonic() - began < 1.5
    assert not any(flood.done() for flood in floods)
    for flood in floods:
        flood.cancel()
    await asyncio.gather(*floods, return_exceptions=True)
    assert (await engine.score(request(MESSAGES))).items[0].error is None


async def test_requests_that_alone_pass_the_queue_are_refused_and_nobody_else(
    make_engine: Callable[..., Any], num_reads: list[int]
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_queued_tokens=1000)
    small, large = request(MESSAGES), request("2+2? " * 40, num_items=200)
    floods = [asyncio.create_task(engine.score(large, caller="flood")) for _ in range(4)]
    await until(lambda: len(num_reads) > 0)
    num_small = 0
    while not all(flood.done() for flood in floods):
        assert (await engine.score(small, caller="small")).items[0].error is None
        num_small += 1
    assert num_small
    for flood in floods:
        with pytest.raises(errors.LargerThanQueue, match="`max_queued_tokens` is 1000"):
            await flood
    assert max(num_reads) < 199  # and the rest of their items was not tokenised


@pytest.mark.parametrize(
    "fields",
    [
        {"scorer": "treg"},  # two rows
        {"scorer": None, "scorers": [f"{n}=endogenous" for n in range(128)]},
    ],
)
async def test_rows_and_labels_of_many_scorers_count_before_all_items_are_tokenised(
    make_engine: Callable[..., Any], num_reads: list[int], fields: dict[str, Any]
) -> None:
    engine = make_engine("causal_lm", ["endogenous", "treg"], max_queued_tokens=600)
    with pytest.raises(errors.LargerThanQueue):
        await engine.score(request("2+2?", num_items=60, **fields))
    assert len(num_reads) < 50


async def test_a_turn_that_is_not_wanted_any_more_goes_to_the_next() -> None:
    pool, gate = ThreadQueue(1, "test"), threading.Event()

    def steps() -> Iterator[int]:
        assert gate.wait(30)
        yield from range(3)

    first = asyncio.create_task(pool.collect(steps))
    others = [asyncio.create_task(pool.collect(lambda n=n: [n], caller=n)) for n in range(4)]
    await asyncio.sleep(0.05)
    for task in (first, others[0], others[2]):
        task.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.wait_for(others[1], 5) == [1]
    assert await asyncio.wait_for(others[3], 5) == [3]
    assert await pool.run(lambda: "free") == "free"
    pool.close()
    with pytest.raises(errors.InternalError, match="closing"):
        await pool.run(lambda: None)
