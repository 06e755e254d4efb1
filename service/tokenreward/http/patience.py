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
_MARGIN_S = 0.25  # before the deadline: the caller is told why, and not that time is up
_MAX_FAULTS = 3  # a request that breaks a replica must not break the next ones for minutes


async def patiently(
    work: Callable[[], Awaitable[T]],
    *,
    patience_s: float,
    left_s: float,
    hold: Callable[[], None] | None = None,
) -> T:
    """The result of `work`, which is tried again while there is no capacity for it (status 503),
    and a few times if it failed where another try may not (a retryable 500: a replica that died).

    Args:
        work: Tries to answer the request. What it takes of budgets, it gives back when it ends.
        patience_s: Seconds for which the request may be held; 0 for one try.
        left_s: Seconds to the request's deadline.
        hold: Called before the first pause. It raises Overloaded if there is no room for a request
            that waits.

    Raises:
        RequestError: The failure, once patience or time is up; any other error at once.
    """
    give_up_at = time.monotonic() + min(patience_s, left_s - _MARGIN_S)
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
