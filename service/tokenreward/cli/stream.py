"""Work that overlaps and answers that stay in order, with a bounded number of groups in memory.

It knows no files and no scorers: groups come from an iterator that may block, and each has one
awaitable answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def in_order(
    groups: Iterator[T], work: Callable[[T], Awaitable[U]], *, concurrency: int
) -> AsyncGenerator[tuple[T, U], None]:
    """Each group with its answer; at most `concurrency` groups are under way. Closing it cancels
    them."""
    running: deque[tuple[T, asyncio.Future[U]]] = deque()
    try:
        while True:
            group = await in_thread(lambda: next(groups, None))
            if group is not None:
                running.append((group, asyncio.ensure_future(work(group))))
            while running and (
                group is None or len(running) == concurrency or running[0][1].done()
            ):
                oldest, answer = running[0]
                yield oldest, await answer
                running.popleft()
            if group is None:
                return
    finally:
        for _, answer in running:
            answer.cancel()
        await asyncio.gather(*(answer for _, answer in running), return_exceptions=True)


async def in_thread(function: Callable[[], T]) -> T:
    """The result of a call that may block. The thread is a daemon: a read that never ends must not
    hold up Ctrl-C."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not done.cancelled():
            setter(value)

    def work() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (done.set_result, function())
        except Exception as error:
            outcome = (done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, daemon=True).start()
    return await done
