"""Calls of Ray that block, off the event loop.

Ray answers some questions, such as where an actor is, by asking its GCS or its controller, and
blocks until that answers: a minute or more while it is away. So callers set a time limit, with
`asyncio.timeout` for example. This module knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

# Threads of their own: calls that hang must keep none from the event loop's other work, such as
# loads and the parsing of large bodies. A call that finds no free one is late, as they are.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="ray")


async def on_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a call returns that may block. If this is cancelled, the call goes on, and nobody
    waits."""
    context = contextvars.copy_context()
    work = partial(context.run, call, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
