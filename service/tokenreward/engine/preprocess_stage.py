"""Before the queue: requests become jobs on a few threads, which callers use in turns.

A request that takes a thread for seconds gives it up every 20 ms, so that a light
request waits for slices of others and not for whole requests. What a closing engine drops gets an
error. This module knows no device.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tokenreward.batching import Batcher
from tokenreward.engine.cost import (
    has_short_options,
    is_light,
    least_num_tokens,
    may_have_more_tokens,
    refuse_long_options,
)
from tokenreward.engine.job import Job
from tokenreward.engine.plan import Plan, ServedScorer, plans_of
from tokenreward.engine.preprocess import Preprocessor
from tokenreward.entry import Entry
from tokenreward.errors import InternalError
from tokenreward.fair_queue import FairQueue
from tokenreward.wire import RewardsRequest

T = TypeVar("T")

_SLICE_S = 0.02  # a slice ends with the step that reaches it


class ThreadQueue:
    """Threads that callers use in turns. It belongs to one event loop.

    Args:
        num_threads: How many slices run at a time.
        name: What the threads are called.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._num_free = num_threads
        self._queue: FairQueue[Entry] = FairQueue()
        self._is_closed = False

    async def run(self, function: Callable[..., T], *args: object, caller: Hashable = None) -> T:
        """Runs a function once its caller's turn has come.

        A thread cannot be stopped: if this is cancelled, the function runs on, and its thread is
        free for others when it ends.

        Raises:
            InternalError: The pool closed before the function had run.
        """
        if self._is_closed:
            raise closing()
        loop = asyncio.get_running_loop()
        turn = Entry(num_tokens=1)
        turn.wait(loop.create_future(), caller=caller)
        self._queue.push([turn])
        self._give_turns()
        try:
            await turn.future
        except asyncio.CancelledError:
            if turn.future.done() and not turn.future.cancelled():
                self._release()  # the turn came together with the cancellation
            raise
        if self._is_closed:
            raise closing()
        work = self._threads.submit(function, *args)

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed meanwhile
                loop.call_soon_threadsafe(self._release)

        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    async def collect(
        self, steps: Callable[..., Iterable[T]], *args: object, caller: Hashable = None
    ) -> list[T]:
        """All that `steps(*args)` yields. It is called and runs on the threads, in slices.

        Raises:
            InternalError: The pool closed before the end.
        """
        results: list[T] = []
        iterator: Iterator[T] | None = None

        def is_finished() -> bool:
            nonlocal iterator
            if iterator is None:
                iterator = iter(steps(*args))
            ends_at = time.monotonic() + _SLICE_S
            for result in iterator:
                results.append(result)
                if time.monotonic() >= ends_at:
                    return False
            return True

        while not await self.run(is_finished, caller=caller):
            pass
        return results

    def close(self, *, wait: bool = False) -> None:
        """Answers everybody who waits for a turn with an error. What runs now runs to the end of
        its slice.

        Args:
            wait: Whether to block until it has.
        """
        self._is_closed = True
        for turn in self._queue.entries():
            turn.fail(closing())
        self._queue.clear()
        self._threads.shutdown(wait=wait)

    def _release(self) -> None:
        self._num_free += 1
        self._give_turns()

    def _give_turns(self) -> None:
        while self._num_free:
            places = self._queue.pop_waiting(1)
            if not places:
                return
            (turn,) = self._queue.leave(places, {0})
            self._num_free -= 1
            turn.future.set_result(None)


class PreprocessStage:
    """Makes jobs of requests, and counts them for admission meanwhile.

    Args:
        preprocessor: Makes the jobs of a request.
        batcher: The queue, which says how many tokens a request may count for.
        max_queued_tokens: The same number.
        scorers: The scorers that the deployment serves, by name.

    Attributes:
        threads: Two threads, which tokenise.
        num_tokens: Tokens, at least, of the requests that are being tokenised.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        batcher: Batcher[Job],
        *,
        max_queued_tokens: int,
        scorers: Mapping[str, ServedScorer],
    ) -> None:
        self._preprocessor = preprocessor
        self._batcher = batcher
        self._max_queued_tokens = max_queued_tokens
        self._scorers = scorers
        self.threads = ThreadQueue(2, "preprocess")
        self.num_tokens = 0

    async def jobs(
        self, request: RewardsRequest, caller: Hashable
    ) -> tuple[list[Plan], list[Job], bool]:
        """What a request wants of each scorer, and the job of each item.

        Returns:
            The plans; the jobs, in the order of the items; and whether the request is so light that
            it needed no thread.

        Raises:
            RequestError: The request is refused: LargerThanQueue, as soon as its jobs have more
                tokens than the queue takes.
        """
        threads = self.threads
        refuse_long_options(request)
        with self._counted(request) as is_abandoned:
            if has_short_options(request):
                plans = plans_of(self._scorers, request)
            else:
                plans = await threads.run(plans_of, self._scorers, request, caller=caller)
            light = is_light(request, plans)

            def steps() -> Iterator[Job]:
                num_tokens = num_extra = 0
                for job in self._preprocessor.jobs(request, plans, is_abandoned):
                    num_tokens += job.queued_tokens
                    num_extra += job.num_extra_tokens
                    self._batcher.refuse_larger(num_tokens, num_extra)
                    yield job

            if light:
                return plans, list(steps()), light
            return plans, await threads.collect(steps, caller=caller), light

    @contextlib.contextmanager
    def _counted(self, request: RewardsRequest) -> Iterator[Callable[[], bool]]:
        """Counts a request towards `max_queued_tokens` while it is tokenised.

        A request that may be larger than the queue counts for nothing until its tokens are known:
        it may be refused itself, and must not have others refused.

        Yields:
            A function that says whether the block has been left. Cancelling a request does not stop
            the thread that tokenises it, so that thread asks.
        """
        num_tokens = least_num_tokens(request)
        if may_have_more_tokens(request, self._max_queued_tokens):
            num_tokens = 0
        self.num_tokens += num_tokens
        left = threading.Event()
        try:
            yield left.is_set
        finally:
            left.set()
            self.num_tokens -= num_tokens


def closing() -> InternalError:
    """The error of whoever is not answered before the engine closes."""
    return InternalError("the engine is closing")
