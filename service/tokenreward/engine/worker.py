"""The thread that owns the device: batch after batch, as long as anybody waits.

    step:  take a batch  ->  launch it  ->  answer the oldest one that is launched

The thread takes its batches itself, so that the device does not stand idle behind a busy event
loop. A batch is made of what waits at the moment when the device can take it. A device that runs
ahead (a GPU) gets the next batch before the last one is answered: while it computes, the thread
packs and copies. A model that is split over N GPUs gets N further batches before the oldest one is
answered: N - 1 of them keep the other GPUs at work, and one more is there while the thread packs.
Any other device computes within the launch, and its batch is answered in the same step. The worker
knows jobs, and nothing of requests or scorers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

from tokenreward.batching import Batcher
from tokenreward.engine.job import Job
from tokenreward.engine.load import Load
from tokenreward.engine.preprocess_stage import closing
from tokenreward.engine.runner import Result, Runner
from tokenreward.engine.usage import Report, report_batch
from tokenreward.errors import InternalError, ItemError, frames
from tokenreward.forward.transfer import Pending

logger = logging.getLogger(__name__)

# After a fault of the worker. An entry that comes meanwhile waits no longer than that.
_FIRST_PAUSE_S = 0.01
_MAX_PAUSE_S = 1.0

# Jobs whose rows are read in one pass, and the pass, or why it could not be launched.
Launched = tuple[Sequence[Job], Pending[Sequence[Result]] | InternalError]
# A task for the device's thread, and the future of its caller.
Task = tuple[Callable[[], None], Future[None]]


class Worker:
    """Runs what waits in a batcher.

    Args:
        batcher: The queue.
        runner: The device.
        thread: An executor of one thread, which owns the device.
        report: Told the metrics of each batch.

    Attributes:
        load: How much there is to do, and how fast it is done.
        loop: The event loop that batches are answered on, once the worker runs.
        version: Of the weights. Each job is marked with it when it is launched.
        busy_since: Since when the thread has been at work on a batch and its retries, by
            time.monotonic; None if it is idle.
    """

    def __init__(
        self, batcher: Batcher[Job], runner: Runner, *, thread: Executor, report: Report
    ) -> None:
        self._batcher = batcher
        self._runner = runner
        self._thread = thread
        self.load = Load(
            max_batch_tokens=batcher.max_batch_tokens,
            max_batch_requests=batcher.max_batch_requests,
        )
        self._report = report
        self.loop: asyncio.AbstractEventLoop | None = None
        self.version = 0
        # Tasks for the device's thread when no batch is in flight. A part of longer work takes
        # turns with batches; any other task runs before the next batch.
        self._tasks: deque[Task] = deque()
        self._parts: deque[Task] = deque()
        self._is_turn_of_batch = False  # a part was the last thing that ran
        self._launched: deque[Launched] = deque()  # the oldest first
        # Jobs of the last batches, as many as may be unanswered at a time. The event loop reads the
        # tuple while the thread works, so it is replaced and never changed.
        self._latest: tuple[Sequence[Job], ...] = ()
        self._num_batches = 0
        self._ended_at = 0.0  # when the last batch ended
        self.busy_since: float | None = None

    async def run_forever(self) -> None:
        """Works until it is cancelled. A fault must not end it: every caller would wait forever.

        After a fault it pauses, twice as long after each further one. A fault that is there before
        anything is waited for would otherwise take the event loop, and fill the log.
        """
        self.loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._batcher.wait()
                # Set before the thread starts, so that a stuck thread, too, fails the health check.
                self.busy_since = time.monotonic()
                await self.loop.run_in_executor(self._thread, self._drain)
                # Entries whose callers have gone left the queue without a batch.
                self._report_queue()
                pause_s = _FIRST_PAUSE_S
            except Exception as error:
                logger.error("a step failed: %s", frames(error))
                failure = InternalError(f"the step failed: {type(error).__name__}")
                self.fail_unanswered(failure)
                # Fail the queued jobs, too. Otherwise a permanent fault would repeat forever.
                self._batcher.fail_all(failure)
                self._report_queue()
                self._launched.clear()
                self.busy_since = None
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    @property
    def running_tokens(self) -> int:
        """Tokens of the jobs on the device that somebody waits for."""
        jobs = [job for batch in self._latest for job in batch]
        return sum(job.queued_tokens for job in jobs if not job.future.done())

    async def between_batches(self, task: Callable[[], None], *, is_part: bool = False) -> None:
        """Runs a task on the device's thread, as soon as no batch is in flight.

        It does not wait for its turn behind what is queued: under standing load that would be
        never. Raises what the task raises, and InternalError if a step fails first.

        Args:
            task: The task.
            is_part: It is a part of longer work. After such a part a batch runs, if one waits.
        """
        future: Future[None] = Future()
        (self._parts if is_part else self._tasks).append((task, future))
        try:
            # For a thread that is idle. A thread at work looks for tasks between two steps.
            self._thread.submit(self._run_tasks)
        except RuntimeError:  # the pool takes nothing after its shutdown
            self.fail_unanswered(closing())
        # The task is done even if nobody waits for it any more. Then asyncio logs no error of it.
        done = asyncio.wrap_future(future)
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(done)

    def fail_unanswered(self, error: InternalError) -> None:
        """Answers the jobs on the device, and the tasks that wait, with an error. On the event
        loop."""
        for jobs in self._latest:
            _fail(jobs, error)
        for tasks in (self._tasks, self._parts):
            with contextlib.suppress(IndexError):
                while True:
                    _, future = tasks.popleft()
                    future.set_exception(error)

    def _drain(self) -> None:
        """Steps until there is nothing to do. On the device's thread."""
        while self.step():
            pass
        self.busy_since = None

    def step(self) -> bool:
        """Takes a batch, launches it, and answers the oldest one that is launched.

        Nothing is answered while the device may have another batch: it has `num_ahead` of them
        behind the oldest one, or fewer where nothing more waits.

        Returns:
            Whether there was anything to do.
        """
        self._run_tasks()
        # While a task waits, no further batch is launched, so that those in flight come to an end.
        jobs = [] if self._due_tasks() else self._batcher.take()
        if jobs:
            self._launched.append((jobs, self._launch(jobs)))
            if len(self._launched) <= self._runner.num_ahead:
                return True
        if not self._launched:
            self._run_tasks()  # a part has waited for entries that nobody waits for any more
            return False
        self._answer(*self._launched.popleft())
        return True

    def _run_tasks(self) -> None:
        """Runs the tasks that wait, if no batch is in flight. On the device's thread."""
        while not self._launched and (tasks := self._due_tasks()):
            try:
                task, future = tasks.popleft()
            except IndexError:  # the event loop has answered it
                return
            self._is_turn_of_batch = tasks is self._parts
            self.busy_since = time.monotonic()
            try:
                task()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
            self.busy_since = None

    def _due_tasks(self) -> deque[Task] | None:
        """The tasks of which one goes before the next batch, if there are any."""
        if self._tasks:
            return self._tasks
        if self._parts and not (self._is_turn_of_batch and self._batcher.queued_items):
            return self._parts
        return None

    def _launch(self, jobs: Sequence[Job]) -> Pending[Sequence[Result]] | InternalError:
        num_unanswered = 1 + self._runner.num_ahead
        self._latest = (*self._latest, jobs)[-num_unanswered:]
        self._num_batches += 1
        self._is_turn_of_batch = False
        launched_at = time.monotonic()
        for job in jobs:
            job.batch_number, job.launched_at = self._num_batches, launched_at
            job.version = self.version
        if self.busy_since is None:
            self.busy_since = launched_at
        try:
            return self._runner.launch([job.requests for job in jobs])
        except Exception as error:
            return _batch_failed(error)

    def _answer(
        self, jobs: Sequence[Job], pending: Pending[Sequence[Result]] | InternalError
    ) -> None:
        """Waits for a batch, and hands its outputs to the event loop."""
        # Time spent behind the batch before counts as time in the queue.
        began = max(jobs[0].launched_at, self._ended_at)
        results: Sequence[Result] | InternalError
        try:
            if isinstance(pending, InternalError):
                raise pending
            results = pending.result()
        except InternalError as error:
            results = error
        except Exception as error:
            results = _batch_failed(error)
        self._ended_at = time.monotonic()
        self.busy_since = self._ended_at if self._launched else None
        compute_s = self._ended_at - began
        for job in jobs:
            job.queue_s, job.compute_s = began - job.queued_at, compute_s
        # Counting reads every token: it must neither block the event loop nor count as compute
        # time.
        rows = [row for job in jobs for row, _ in job.requests]
        num_computed = self._runner.layout.num_computed(rows)
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._deliver, jobs, results, num_computed)

    def _deliver(
        self,
        jobs: Sequence[Job],
        results: Sequence[Result] | InternalError,
        num_computed: int,
    ) -> None:
        """Answers the jobs of a batch, then reports it. On the event loop."""
        if isinstance(results, InternalError):
            _fail(jobs, results)
        else:
            for job, outputs in zip(jobs, results, strict=True):
                job.outputs = outputs
                if not job.future.done():
                    job.future.set_result(None)
            # A batch with a failure took the time of its retries, or hardly any.
            if not any(isinstance(job.outputs, ItemError) for job in jobs):
                self.load.note_batch(jobs, jobs[0].compute_s)
        num_tokens = sum(job.num_tokens for job in jobs)
        self._batcher.note_rate(num_tokens, jobs[0].compute_s)
        report_batch(self._report, jobs, num_computed)
        self._report_queue()

    def _report_queue(self) -> None:
        self._report("queued_items", self._batcher.queued_items)
        self._report("queued_tokens", self._batcher.waiting_tokens)


def _batch_failed(error: Exception) -> InternalError:
    logger.error("a batch failed outside the model: %s", frames(error))
    return InternalError(f"the batch failed: {type(error).__name__}")


def _fail(jobs: Sequence[Job], error: InternalError) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_exception(error)
