"""Overlaps the work on many groups, keeps the answers in order, and bounds the groups in memory.

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
    """Each group with its answer, in the order of the groups.

    Args:
        groups: An iterator that may block; it is read in a thread of its own.
        work: Makes the answer of a group.
        concurrency: The most groups under way at a time.

    Closing the generator cancels the work under way.
    """
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
    """The result of a call that may block.

    The thread is a daemon: a read that never ends must not hold up Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not result.cancelled():
            setter(value)

    def work() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (result.set_result, function())
        except Exception as error:
            outcome = (result.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: no one waits
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, daemon=True).start()
    return await result
