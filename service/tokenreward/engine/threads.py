"""Runs functions on the threads of an engine. What a closing engine drops gets an error.

This module knows pools of threads, and nothing of what runs on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from tokenreward.errors import InternalError

T = TypeVar("T")


async def run_in(pool: Executor | None, function: Callable[..., T], *args: object) -> T:
    """Runs a function in a pool, or right here if that is None.

    Raises:
        InternalError: The pool closed before the function had run.
    """
    if pool is None:
        return function(*args)
    try:
        future = asyncio.get_running_loop().run_in_executor(pool, function, *args)
    except RuntimeError:  # the pool takes nothing after its shutdown
        raise closing() from None
    try:
        return await future
    except asyncio.CancelledError:
        # A shutdown cancels what waits in the pool; a caller who hangs up cancels the task itself.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise closing() from None


def closing() -> InternalError:
    """The error of whoever is not answered before the engine closes."""
    return InternalError("the engine is closing")
