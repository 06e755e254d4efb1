"""Holds a request while the service is overloaded or loads, for callers that would give it up.

A plain caller tries a refused request a few times within seconds, or never again, and then loses
the reward. Its request waits here instead. A caller that tries again by itself says so in a header.
Requests wait in lines, in which callers take turns. This module knows errors and seconds, and no
bodies.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from tokenreward.errors import (
    InternalError,
    InvalidField,
    Loading,
    Overloaded,
    RequestError,
    quotable,
)
from tokenreward.wire.paths import HOLD_HEADER

T = TypeVar("T")
_Place = tuple[int, int, asyncio.Event]  # turn, number, and what wakes the request

_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# Before the deadline, so that the caller is told the failure, and not that time is up.
_MARGIN_S = 0.25
_RETRYABLE_STATUSES = (Loading.status, InternalError.status)
# Requests held at a time for one deployment. Without a limit those of a dead deployment would fill
# a gateway, and callers of the others would find no room there.
MAX_HELD = 256
_MAX_FAULTS = 3  # tries that end in a 500: it may be the request that breaks replicas
# A full service refuses sooner than this. A request that it still has by then is in its queue.
_REFUSAL_S = 0.1


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
        if error.status != Loading.status or time.monotonic() + _SHORTEST_PAUSE_S > give_up_at:
            raise

    async def again() -> T:
        return attempt()

    result: T = await unless_gone(HeldRequests().hold(again, give_up_at=give_up_at))
    return result


class HeldRequests:
    """The requests that are held for one deployment, or for one replica.

    The first request tries again after pauses of 50 ms to 1 s, and at once when another one was
    answered. The next request tries once the first is answered, or has gone 0.1 s without a
    refusal. So requests are served in turn, and one of them at a time asks a full service. A new
    request goes to the end of the line.

    Callers take turns, as in the queue of a replica: the next request of a caller who has many
    stands behind the first one of every other caller. A request that finds `MAX_HELD` in the line
    is refused at once.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[_Place] = []
        self._turn = 0  # of the last request that left the line
        self._last_turns: dict[str, int] = {}  # of each caller, while anybody waits
        self._pause_s = _SHORTEST_PAUSE_S
        self._next_try = -math.inf  # of the first one, by time.monotonic

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    async def hold(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        give_up_at: float,
        caller: str = "",
        before_pause: Callable[[], None] = lambda: None,
        status_of: Callable[[T], int] = lambda _: 200,
        max_faults: int = _MAX_FAULTS,
    ) -> T:
        """The result of `work`. It is tried again after a 503 (no capacity) until time is up, and
        after a retryable 500 (a replica that died, for example) until `max_faults` of them.

        Args:
            work: Makes one attempt. If it fails, it must have given back what it took of budgets.
            give_up_at: When the request is held no longer. At least one attempt is made.
            caller: Who asks.
            before_pause: Called once, before the request is held. It may raise Overloaded.
            status_of: The status of a result, which may be a refusal, too.
            max_faults: After how many failures with a 500 the last one is raised.

        Raises:
            RequestError: The last failure, once time or the tries are used up. An error that may
                not be retried, at once. Overloaded, if the line is full.
        """
        place: _Place | None = None
        num_faults = 0
        if self._waiting and time.monotonic() < give_up_at:
            before_pause()
            place = self._join(caller)
        try:
            while True:
                if place is not None:
                    await self._wait(place, give_up_at)
                is_last = time.monotonic() + _SHORTEST_PAUSE_S > give_up_at
                outcome = await self._try(work, place)
                status = outcome.status if isinstance(outcome, RequestError) else status_of(outcome)
                num_faults += status == InternalError.status
                if is_last or status not in _RETRYABLE_STATUSES or num_faults >= max_faults:
                    return self._end(outcome, has_room=status not in _RETRYABLE_STATUSES)
                if place is None:
                    before_pause()
                place = self._line_up(place, caller)
        finally:
            if place is not None:
                self._leave(place)

    def _line_up(self, place: _Place | None, caller: str) -> _Place:
        """Puts a refused request where it stood, or else behind the others; a pause is next."""
        if place is None:
            place = self._join(caller)
        elif place not in self._waiting:  # it was taken for accepted
            heapq.heappush(self._waiting, place)
        # Other gateways hold requests for the same deployment: not all try at one time.
        pause_s = self._pause_s * (1 - random.random() / 4)  # noqa: S311
        self._next_try = time.monotonic() + pause_s
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        self._wake()
        return place

    def _end(self, outcome: T | RequestError, *, has_room: bool) -> T:
        """Returns or raises what came of a request. If there was room, the next one tries."""
        if has_room:
            self._pause_s, self._next_try = _SHORTEST_PAUSE_S, -math.inf
            self._wake()
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def _try(
        self, work: Callable[[], Awaitable[T]], place: _Place | None
    ) -> T | RequestError:
        """What came of one attempt; an error only if another attempt may end otherwise. The next in
        line may follow once it is not refused for a moment."""
        task: asyncio.Future[T] | None = None
        try:
            if place is None:
                return await work()
            task = asyncio.ensure_future(work())
            done, _ = await asyncio.wait({task}, timeout=_REFUSAL_S)
            if not done:
                self._leave(place)
                self._pause_s = _SHORTEST_PAUSE_S
            return await task
        except RequestError as error:
            if not error.retryable:
                raise
            return error
        finally:
            if task is not None and task.cancel():
                await asyncio.wait({task})

    def _join(self, caller: str) -> _Place:
        if len(self._waiting) >= MAX_HELD:
            raise Overloaded(f"{MAX_HELD} requests wait for room already", retry_after_s=1)
        turn = max(self._turn, self._last_turns.get(caller, 0)) + 1
        self._last_turns[caller] = turn
        place = (turn, next(self._numbers), asyncio.Event())
        heapq.heappush(self._waiting, place)
        return place

    def _leave(self, place: _Place) -> None:
        if place not in self._waiting:
            return
        self._waiting.remove(place)
        heapq.heapify(self._waiting)
        self._turn = max(self._turn, place[0])
        if not self._waiting:
            self._last_turns.clear()
            self._turn = 0
        self._wake()

    async def _wait(self, place: _Place, give_up_at: float) -> None:
        """Returns when the request may try: it is the first after its pause, or time is up."""
        event = place[2]
        while True:
            event.clear()
            until = give_up_at
            if self._waiting[0] is place:
                until = min(until, self._next_try)
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await event.wait()
            except TimeoutError:
                pass

    def _wake(self) -> None:
        if self._waiting:
            self._waiting[0][2].set()
