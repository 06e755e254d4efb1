"""The threads of one engine, and how they close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

from tokenreward.errors import InternalError

T = TypeVar("T")

_NUM_PREPROCESS_THREADS = 2


class Threads:
    """Three pools. Work in one of them does not wait for work in another: what has been computed is
    answered while other requests are still tokenised.

    Attributes:
        device: One thread, which owns the device.
        preprocess: Two threads, which tokenise.
        postprocess: One thread, which makes results of outputs.
        is_closed: Whether `close` was called.
    """

    def __init__(self) -> None:
        self.device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self.preprocess = ThreadPoolExecutor(
            _NUM_PREPROCESS_THREADS, thread_name_prefix="preprocess"
        )
        self.postprocess = ThreadPoolExecutor(1, thread_name_prefix="postprocess")
        self.is_closed = False

    async def run(self, pool: Executor | None, function: Callable[..., T], *args: object) -> T:
        """Runs a function in a pool, or right here if that is None.

        Raises:
            InternalError: The pool closed before the function had run.
        """
        if pool is None:
            return function(*args)
        if self.is_closed:
            raise closing()
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function, *args)
        except asyncio.CancelledError:
            # Closing cancels what waits in a pool; a caller who hangs up cancels the task itself.
            task = asyncio.current_task()
            if self.is_closed and task is not None and not task.cancelling():
                raise closing() from None
            raise

    def close(self) -> None:
        """Drops what waits, and waits for nothing."""
        self.is_closed = True
        for pool in (self.device, self.preprocess, self.postprocess):
            pool.shutdown(wait=False, cancel_futures=True)


def closing() -> InternalError:
    """The error of whoever is not answered before the engine closes."""
    return InternalError("the engine is closing")
