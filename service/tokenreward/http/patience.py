"""Holds a request while the service is overloaded or loads, for callers that would give it up.

Some trainers try a refused request a few times within seconds, or never again, and then lose the
reward. Their requests wait here instead. It knows errors and seconds, and no bodies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tokenreward.errors import Loading, RequestError

T = TypeVar("T")

_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# Before the deadline, so that the caller is told the failure, and not that time is up.
_MARGIN_S = 0.25
_MAX_FAULTS = 3  # tries that end in a 500: it may be the request that breaks replicas


def patience_ends(patience_s: float, *, deadline: float) -> float:
    """When a request that begins now is held no longer, by time.monotonic: once its protocol's
    patience is used up, or shortly before its deadline. Each request has one such moment."""
    return min(time.monotonic() + patience_s, deadline - _MARGIN_S)


async def patiently(
    work: Callable[[], Awaitable[T]],
    *,
    give_up_at: float,
    hold: Callable[[], None] | None = None,
) -> T:
    """The result of `work`. It is tried again while it fails for want of capacity (status 503), and
    at most twice after a retryable 500: a replica that died, for example.

    Args:
        work: Makes one attempt. If it fails, it must have given back what it took of budgets.
        give_up_at: When the request is held no longer, by time.monotonic. At least one attempt is
            made.
        hold: Called before the first pause.

    Raises:
        RequestError: The last failure, once time or the tries are used up. An error that may not be
            retried, at once. Overloaded, if `hold` finds no room for a request that waits.
    """
    pause_s, num_faults = _SHORTEST_PAUSE_S, 0
    while True:
        try:
            return await work()
        except RequestError as error:
            num_faults += error.status != Loading.status
            is_final = not error.retryable or error.status not in (500, Loading.status)
            is_late = time.monotonic() + pause_s > give_up_at
            if is_final or is_late or num_faults >= _MAX_FAULTS:
                raise
        if hold is not None:
            hold()
            hold = None
        await asyncio.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
