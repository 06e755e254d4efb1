"""Work side by side on threads that keep no process alive. It knows nothing of what the work is.

The threads of `concurrent.futures` are joined when Python exits: a request without an answer would
hold up Ctrl-C until its deadline. These are daemons.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
PARTING_S = 1.0

Stop = Future[None]
"""Done once nobody wants the result any more."""


def happens_s(future: Future[Any], stop: Stop, timeout_s: float) -> bool:
    """Whether the future is done in time, and before the stop."""
    wait([future, stop], min(timeout_s, threading.TIMEOUT_MAX), return_when="FIRST_COMPLETED")
    return future.done()


def side_by_side(works: Sequence[Callable[[], T]], stop: Stop, *, most: int) -> list[T]:
    """The results in order, of at most so many at a time. Raises the first error, once `stop` is
    done and whoever ends within a second has ended."""
    futures: list[Future[T]] = [Future() for _ in works]
    waiting = deque(zip(works, futures, strict=True))

    def run() -> None:
        while not stop.done():
            try:
                work, future = waiting.popleft()
            except IndexError:
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    num = min(len(works), most)
    threads = [
        threading.Thread(target=run, name=f"tokenreward-{number}", daemon=True)
        for number in range(num)
    ]
    try:
        for thread in threads:
            thread.start()
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    except BaseException:
        # Nothing more is sent. A request in flight cannot be called back: it gets a moment to end,
        # no more.
        stop.set_result(None)
        until = time.monotonic() + PARTING_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        raise
