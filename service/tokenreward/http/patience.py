"""Holds a request while the service is overloaded or loads, for callers that would give it up.

A plain caller tries a refused request a few times within seconds, or never again, and then loses
the reward. Its request waits here instead. A caller that tries again by itself says so in a header.
This module knows errors and seconds, and no bodies; `held_requests` knows who tries next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from tokenreward.errors import InvalidField, Loading, RequestError, quotable
from tokenreward.http.held_requests import SHORTEST_PAUSE_S, HeldRequests
from tokenreward.wire.paths import HOLD_HEADER

T = TypeVar("T")

# Before the deadline, so that the caller is told the failure, and not that time is up.
_MARGIN_S = 0.25


def patience_ends(patience_s: float, headers: Mapping[str, str], *, deadline: float) -> float:
    """Until when a request that begins now is held, by time.monotonic: the shorter of its
    protocol's patience and the caller's header, and never later than shortly before its deadline.
    It is computed once for each request.

    Raises:
        InvalidField: The caller's header is no number of seconds.
    """
    header = headers.get(HOLD_HEADER)
    if header is not None:
        try:
            seconds = float(header)
        except ValueError:
            seconds = math.nan
        if not seconds >= 0:
            raise InvalidField(
                f"the header must be a number of seconds, got `{quotable(header)}`",
                param=HOLD_HEADER,
            )
        patience_s = min(patience_s, seconds)
    return min(time.monotonic() + patience_s, deadline - _MARGIN_S)


async def when_possible(
    attempt: Callable[[], T], *, give_up_at: float, unless_gone: Callable[[Any], Awaitable[Any]]
) -> T:
    """The result of something that costs nothing to try, such as to take room for a body.

    Args:
        attempt: Makes one attempt.
        give_up_at: When the request is held no longer, by time.monotonic.
        unless_gone: Awaits a coroutine for as long as the caller is there.

    Raises:
        RequestError: The last failure, once time is up. An error other than a 503, at once.
    """
    try:
        return attempt()
    except RequestError as error:
        if error.status != Loading.status or time.monotonic() + SHORTEST_PAUSE_S > give_up_at:
            raise

    async def again() -> T:
        return attempt()

    result: T = await unless_gone(HeldRequests().hold(again, give_up_at=give_up_at))
    return result
