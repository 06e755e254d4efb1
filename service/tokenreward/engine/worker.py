"""A shift of the device's thread: batch after batch while somebody waits, each answered while the
next one runs.

The thread takes its next batch itself, so that the device does not stand idle behind a busy event
loop: when this one has run, and so late comers are in it; or, on a device that runs ahead, as soon
as this one is asked for, and whoever comes after that is in the one behind it. It knows entries and
outcomes, nothing of requests or scorers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenreward.batching import Batcher, Entry
from tokenreward.engine.job import Outcome, Rows
from tokenreward.engine.runner import Runner
from tokenreward.errors import InternalError, frames
from tokenreward.forward.layout import Layout

Batch = Sequence[Entry[Rows, Outcome]]
Report = Callable[..., None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A batch that the device was asked for; `answer` waits for it. `began`: when it was, by
    time.monotonic."""

    batch: Batch
    number: int
    answer: Callable[[], Sequence[Any]]
    began: float


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A batch that has run: each entry's outputs or error. `began` is a reading of time.monotonic,
    in seconds; `num_computed`: tokens that its pass computes."""

    batch: Batch
    number: int
    results: Sequence[Any]
    began: float
    compute_s: float
    num_computed: int


class Worker:
    """Runs what waits in `batcher` on `device`. `began`: when the batch that runs now did, by
    time.monotonic."""

    def __init__(
        self,
        batcher: Batcher[Rows, Outcome],
        device: Runner,
        *,
        thread: Executor,
        layout: Layout,
        report: Report,
    ) -> None:
        self._batcher = batcher
        self._device = device
        self._thread = thread
        self._layout = layout
        self._report = report
        self._running: Batch = ()
        self._num_batches = 0
        self._ended = 0.0  # when the last one did
        self.began: float | None = None

    async def work_forever(self) -> None:
        """Worker after shift. Nothing ends it but being cancelled: without it every caller would
        wait."""
        while True:
            try:
                batch = self._running = await self._batcher.next_batch()
                self.began = time.monotonic()  # by now: the thread may be lost, too
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._run_while_some_wait, batch, loop)
            except Exception as error:
                logger.error("a step failed: %s", frames(error))
                self.answer_running(InternalError(f"the step failed: {type(error).__name__}"))

    def answer_running(self, error: InternalError) -> None:
        """Answers with an error whoever's batch runs now."""
        _fail(self._running, error)

    def _run_while_some_wait(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """On the device's thread. A device that runs ahead is asked for the next batch before this
        one's answer is waited for: it packs and copies while it computes."""
        step = self._ask(batch)
        while step is not None:
            ahead = self._ask(self._batcher.take(), after=step) if self._device.runs_ahead else None
            loop.call_soon_threadsafe(self._answer, self._done(step, ahead))
            step = ahead or self._ask(self._batcher.take())

    def _ask(self, batch: Batch, *, after: Step | None = None) -> Step | None:
        """None of no batch. `after`: the step that is not answered yet. Nothing escapes."""
        if not batch:
            return None
        self._running = [*(() if after is None else after.batch), *batch]
        self._num_batches += 1
        began = time.monotonic()
        self.began = began if after is None else after.began
        try:
            answer: Callable[[], Sequence[Any]] = self._device.ask([entry.work for entry in batch])
        except Exception as error:
            answer = partial(_all, batch, error)
        return Step(batch, self._num_batches, answer, began)

    def _done(self, step: Step, ahead: Step | None) -> Done:
        """The step, answered. Nothing escapes."""
        began = max(step.began, self._ended)  # while the one before it ran, it waited
        try:
            results = step.answer()
        except Exception as error:
            results = _all(step.batch, error)
        self._ended = time.monotonic()
        self.began = None if ahead is None else self._ended
        # Here, not on the event loop, and after the clock has stopped: it looks at every token of
        # the batch.
        num_computed = self._layout.num_computed(
            [row for entry in step.batch for row, _ in entry.work]
        )
        return Done(step.batch, step.number, results, began, self._ended - began, num_computed)

    def _answer(self, done: Done) -> None:
        """On the event loop: everybody first, then the figures."""
        try:
            for entry, result in zip(done.batch, done.results, strict=True):
                if entry.future.done():
                    continue
                if isinstance(result, InternalError):
                    entry.future.set_exception(result)
                else:
                    queue_s = done.began - entry.queued_at
                    entry.future.set_result(Outcome(result, done.number, queue_s, done.compute_s))
            self._measure(done)
        except Exception as error:
            logger.error("an answer failed: %s", frames(error))
            _fail(done.batch, InternalError(f"the answer failed: {type(error).__name__}"))

    def _measure(self, done: Done) -> None:
        num_tokens = sum(entry.num_tokens for entry in done.batch)
        num_computed = done.num_computed
        self._batcher.measured(num_tokens, done.compute_s)
        self._report("compute_seconds", done.compute_s)
        self._report("batch_items", len(done.batch))
        self._report("batch_tokens", num_tokens)
        self._report("computed_tokens_total", num_computed)
        self._report("shared_tokens_total", num_tokens - num_computed)
        for entry in done.batch:
            self._report("queue_seconds", done.began - entry.queued_at)
        self._report("queued_items", self._batcher.queued_items)
        self._report("queued_tokens", self._batcher.queued_tokens)


def _all(batch: Batch, error: Exception) -> Sequence[Any]:
    """The error, as everybody's answer."""
    if not isinstance(error, InternalError):
        logger.error("a batch failed outside the model: %s", frames(error))
        error = InternalError(f"the batch failed: {type(error).__name__}")
    return [error] * len(batch)


def _fail(batch: Batch, error: InternalError) -> None:
    for entry in batch:
        if not entry.future.done():
            entry.future.set_exception(error)
