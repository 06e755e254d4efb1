"""Work side by side, on threads that keep no process alive or in tasks. It does not know what the
work is.

`concurrent.futures` joins its threads when Python exits: a request without an answer would hold up
Ctrl-C until its deadline. The threads here are daemons.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
PARTING_S = 1.0
"""How long a call that fails waits for its threads."""

Stop = Future[None]
"""Done once nobody wants the result any more."""


def is_done_in_time(future: Future[Any], stop: Stop, timeout_s: float) -> bool:
    """Wait until the future is done, `stop` is done or the time is over; whether the future is."""
    timeout_s = min(timeout_s, threading.TIMEOUT_MAX)
    wait([future, stop], timeout_s, return_when=FIRST_COMPLETED)
    return future.done()


def side_by_side(works: Sequence[Callable[[], T]], stop: Stop, *, most: int) -> list[T]:
    """Call all functions, each on one of several threads.

    Args:
        works: The functions.
        stop: Set to done when one of them fails. They are to watch it, and end soon after.
        most: The largest number of threads.

    Returns:
        The results, in the order of `works`.

    Raises:
        Exception: The first one that a function raised. The other threads had `PARTING_S` to end.
    """
    futures: list[Future[T]] = [Future() for _ in works]
    queue = deque(zip(works, futures, strict=True))

    def run() -> None:
        while not stop.done():
            try:
                # One step, so no lock: a test for emptiness would be out of date at once.
                work, future = queue.popleft()
            except IndexError:
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    threads = [
        threading.Thread(target=run, name=f"tokenreward-{number}", daemon=True)
        for number in range(min(len(works), most))
    ]
    try:
        for thread in threads:
            thread.start()
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        # KeyboardInterrupt as well. Nothing more is sent, but a request in flight cannot be called
        # back: its thread gets a moment to end, and no more.
        stop.set_result(None)
        until = time.monotonic() + PARTING_S
        for thread in threads:
            # Without an ident it was never started: the interrupt came before.
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        raise


async def tasks_side_by_side(works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What all of these return, in their order. The first error of one cancels the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        # `gather` lets the other tasks run on after the first error.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
