"""One step of the worker: take a batch, launch it, answer the oldest one that is launched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from fakes import web
from tokenreward.batching import Batcher
from tokenreward.contract import Needs, Outputs, Row, RowRequest
from tokenreward.engine.job import Job
from tokenreward.engine.runner import Runner
from tokenreward.engine.worker import Worker
from tokenreward.errors import InternalError
from tokenreward.forward.transfer import Pending

ROW = RowRequest(Row(np.array([3, 4]), 1, 2), Needs(temperatures=frozenset({1.0})))


class Recorded:
    """A layout that computes nothing and notes what it is told to do, and when a pass is waited
    for."""

    name, shares, runs_ahead = "recorded", False, True
    gap, measure, reason = None, None, None

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.num_passes = 0

    def num_computed(self, rows: Sequence[Row]) -> int:
        return len(rows)

    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        self.num_passes += 1
        self.diary.append(f"launch {self.num_passes}")
        return Pending(partial(self._wait, self.num_passes))

    def _wait(self, number: int) -> list[Outputs]:
        self.diary.append(f"wait {number}")
        return [Outputs(pooled=float(number))]

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        return self.launch(requests).result()


def job(index: int) -> Job:
    made = Job(index=index, requests=[ROW])
    made.count_tokens()
    made.wait(asyncio.get_running_loop().create_future())
    return made


@pytest.fixture
def start() -> Callable[..., tuple[Worker, Recorded, Batcher[Job]]]:
    """A worker whose steps the test takes itself."""

    def make(*, num_ahead: int) -> tuple[Worker, Recorded, Batcher[Job]]:
        layout: Any = Recorded()
        batcher: Batcher[Job] = Batcher(
            max_batch_tokens=2, max_batch_requests=1, max_queued_tokens=100
        )
        worker = Worker(
            batcher,
            Runner(layout, num_ahead=num_ahead),
            thread=ThreadPoolExecutor(1),
            report=lambda name, value=1.0, **labels: None,
        )
        worker.loop = asyncio.get_running_loop()
        return worker, layout, batcher

    return make


async def test_a_device_that_runs_ahead_gets_the_next_batch_before_the_last_is_answered(
    start: Callable[..., Any],
) -> None:
    worker, layout, batcher = start(num_ahead=1)
    jobs = [job(0), job(1)]
    batcher.submit(jobs)
    assert worker.step()
    assert layout.diary == ["launch 1"]
    assert worker.step()
    assert layout.diary == ["launch 1", "launch 2", "wait 1"]
    assert worker.step()
    assert layout.diary == ["launch 1", "launch 2", "wait 1", "wait 2"]
    assert not worker.step()
    await asyncio.gather(*(each.future for each in jobs))
    assert [each.outputs[0].pooled for each in jobs] == [1.0, 2.0]
    assert [each.batch_number for each in jobs] == [1, 2]


async def test_a_model_over_several_devices_gets_a_batch_more_for_each_of_them(
    start: Callable[..., Any],
) -> None:
    worker, layout, batcher = start(num_ahead=3)
    jobs = [job(index) for index in range(6)]
    batcher.submit(jobs)
    while worker.step():
        pass
    assert layout.diary == [
        *("launch 1", "launch 2", "launch 3", "launch 4"),
        *("wait 1", "launch 5", "wait 2", "launch 6", "wait 3"),
        *("wait 4", "wait 5", "wait 6"),
    ]
    assert worker.busy_since is None
    await asyncio.gather(*(each.future for each in jobs))
    assert [each.outputs[0].pooled for each in jobs] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


async def test_what_comes_while_a_batch_is_waited_for_goes_before_the_next_answer(
    start: Callable[..., Any],
) -> None:
    worker, layout, batcher = start(num_ahead=3)
    first, late = [job(0), job(1)], job(2)
    batcher.submit(first)
    for _ in range(3):  # two launches, and the first answer, as nothing more waits
        worker.step()
    batcher.submit([late])
    while worker.step():
        pass
    assert layout.diary == ["launch 1", "launch 2", "wait 1", "launch 3", "wait 2", "wait 3"]


@pytest.mark.parametrize("num_ahead", [1, 3])
async def test_a_task_waits_for_every_batch_in_flight_and_for_none_in_the_queue(
    start: Callable[..., Any], num_ahead: int
) -> None:
    worker, layout, batcher = start(num_ahead=num_ahead)
    jobs = [job(index) for index in range(num_ahead + 2)]
    batcher.submit(jobs)
    for _ in range(num_ahead):
        worker.step()
    task = asyncio.create_task(worker.between_batches(lambda: layout.diary.append("task")))
    await asyncio.sleep(0)
    layout.diary.clear()
    while worker.step():
        pass
    await task
    waits = [f"wait {number}" for number in range(1, num_ahead + 1)]
    assert layout.diary[: num_ahead + 2] == [*waits, "task", f"launch {num_ahead + 1}"]
    await asyncio.gather(*(each.future for each in jobs))


async def test_any_other_device_answers_a_batch_in_the_step_that_launched_it(
    start: Callable[..., Any],
) -> None:
    worker, layout, batcher = start(num_ahead=0)
    batcher.submit([job(0), job(1)])
    assert worker.step()
    assert layout.diary == ["launch 1", "wait 1"]
    assert worker.step()
    assert layout.diary == ["launch 1", "wait 1", "launch 2", "wait 2"]


async def test_the_worker_is_busy_while_a_batch_is_on_the_device(start: Callable[..., Any]) -> None:
    worker, _, batcher = start(num_ahead=1)
    assert worker.busy_since is None
    batcher.submit([job(0)])
    worker.step()
    assert worker.busy_since is not None
    worker.step()
    assert worker.busy_since is None


async def test_a_fault_of_the_worker_answers_everybody_and_leaves_it_idle_and_alive(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, _, batcher = start(num_ahead=1)
    work = asyncio.create_task(worker.run_forever())
    monkeypatch.setattr(worker, "step", lambda: 1 / 0)
    jobs = [job(0), job(1), job(2)]
    batcher.submit(jobs)
    async with asyncio.timeout(10):
        errors = await asyncio.gather(*(each.future for each in jobs), return_exceptions=True)
    assert [type(error) for error in errors] == [InternalError] * 3
    assert worker.busy_since is None
    monkeypatch.undo()
    again = job(3)
    batcher.submit([again])
    async with asyncio.timeout(10):
        await again.future
    work.cancel()


@pytest.mark.parametrize("num_ahead", [1, 4])
async def test_a_fault_between_launch_and_answer_answers_every_batch_that_was_launched(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, num_ahead: int
) -> None:
    worker, layout, batcher = start(num_ahead=num_ahead)
    monkeypatch.setattr(layout, "num_computed", lambda rows: 1 / 0)
    # As many as are launched when the first answer is due, and two that wait in the queue.
    jobs = [job(index) for index in range(num_ahead + 3)]
    batcher.submit(jobs)
    work = asyncio.create_task(worker.run_forever())
    async with asyncio.timeout(10):
        errors = await asyncio.gather(*(each.future for each in jobs), return_exceptions=True)
    assert [type(error) for error in errors] == [InternalError] * len(jobs)
    assert layout.diary[-1] == "wait 1"
    monkeypatch.undo()
    again = job(9)
    batcher.submit([again])
    async with asyncio.timeout(10):
        await again.future
    # Nothing of what was launched before the fault is waited for again.
    assert layout.diary[-1] == f"wait {layout.num_passes}"
    assert worker.busy_since is None
    work.cancel()


async def test_a_queue_that_cannot_be_waited_for_is_no_loop_without_end(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker, _, batcher = start(num_ahead=0)
    monkeypatch.setattr(batcher, "wait", lambda: 1 / 0)
    each = job(0)
    batcher.submit([each])
    work = asyncio.create_task(worker.run_forever())
    async with asyncio.timeout(10):
        (error,) = await asyncio.gather(each.future, return_exceptions=True)
    assert type(error) is InternalError
    await asyncio.sleep(0.2)
    assert 1 <= len(caplog.records) <= 5  # after 10, 20, 40, 80 ms
    monkeypatch.undo()
    again = job(1)
    batcher.submit([again])
    async with asyncio.timeout(10):
        await again.future
    work.cancel()


@pytest.mark.parametrize("fails", [False, True], ids=["callers gone", "step failed"])
async def test_the_gauges_of_the_queue_are_zero_once_nothing_waits(fails: bool) -> None:
    layout: Any = Recorded()
    batcher: Batcher[Job] = Batcher(max_batch_tokens=2, max_batch_requests=1, max_queued_tokens=100)
    # What the engine reported when the jobs came.
    gauges = {"queued_items": 2.0, "queued_tokens": 4.0}
    worker = Worker(
        batcher,
        Runner(layout, num_ahead=0),
        thread=ThreadPoolExecutor(1),
        report=lambda name, value=1.0, **labels: gauges.__setitem__(name, value),
    )
    jobs = [job(0), job(1)]
    batcher.submit(jobs)
    if fails:
        layout.num_computed = None  # the count after the pass raises
    else:
        for each in jobs:
            each.future.cancel()
    work = asyncio.create_task(worker.run_forever())
    await asyncio.gather(*(each.future for each in jobs), return_exceptions=True)
    try:
        await web.until(lambda: gauges == {"queued_items": 0, "queued_tokens": 0})
    finally:
        work.cancel()
