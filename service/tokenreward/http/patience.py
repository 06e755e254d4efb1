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
from typing import Any, TypeVar, cast

from tokenreward.errors import InternalError, InvalidField, Loading, RequestError, quotable
from tokenreward.wire.paths import HOLD_HEADER

T = TypeVar("T")

_SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
# Before the deadline, so that the caller is told the failure, and not that time is up.
_MARGIN_S = 0.25
_PASSING = (Loading.status, InternalError.status)
_MAX_FAULTS = 3  # tries that end in a 500: it may be the request that breaks replicas
# A full service refuses sooner than this. A request that it still has by then is in its queue.
_ACCEPTED_S = 0.1


def patience_ends(patience_s: float, headers: Mapping[str, str], *, deadline: float) -> float:
    """When a request that begins now is held no longer, by time.monotonic: once its protocol's
    patience is used up, or what its caller says, or shortly before its deadline. Each request has
    one such moment.

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

    result: T = await unless_gone(Line().hold(again, give_up_at=give_up_at))
    return result


class Line:
    """The requests that are held for one deployment, or for one replica.

    The first one tries again after pauses of 50 ms to 1 s, and at once when another request has
    been answered. The others follow it one by one: each tries when the one before it is answered or
    was not refused for a moment. So they are served in turn, and a full service is asked by one of
    them at a time. A new request stands behind those that wait.

    Callers take turns, as in the queue of a replica: the next request of a caller who has many
    stands behind the first one of every other caller.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Event]] = []
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
        before_pause: Callable[[], None] | None = None,
        status_of: Callable[[T], int] = lambda _: 200,
        max_faults: int = _MAX_FAULTS,
    ) -> T:
        """The result of `work`. It is tried again while it fails for want of capacity (status 503),
        and at most twice after a retryable 500: a replica that died, for example.

        Args:
            work: Makes one attempt. If it fails, it must have given back what it took of budgets.
            give_up_at: When the request is held no longer, by time.monotonic. At least one attempt
                is made.
            caller: Who asks.
            before_pause: Called before the request is first held.
            status_of: The status of a result, which may be a refusal, too.
            max_faults: After how many failures with a 500 the last one is raised.

        Raises:
            RequestError: The last failure, once time or the tries are used up. An error that may
                not be retried, at once. Overloaded, if `before_pause` finds no room for a request
                that waits.
        """
        place: tuple[int, int, asyncio.Event] | None = None
        num_faults = 0
        if self._waiting and time.monotonic() < give_up_at:
            if before_pause is not None:
                before_pause()
            before_pause, place = None, self._join(caller)
        try:
            while True:
                if place is not None:
                    await self._wait(place, give_up_at)
                is_last = time.monotonic() + _SHORTEST_PAUSE_S > give_up_at
                result, failure = None, None
                try:
                    result = await self._try(work, place)
                    status = status_of(result)
                except RequestError as error:
                    if not error.retryable:
                        raise
                    failure, status = error, error.status
                num_faults += status == InternalError.status
                if status not in _PASSING:
                    self._note_answer()
                    is_last = True
                if is_last or num_faults >= max_faults:
                    if failure is not None:
                        raise failure
                    return cast(T, result)
                if place is None:
                    if before_pause is not None:
                        before_pause()
                    place = self._join(caller)
                elif place not in self._waiting:  # it was taken for accepted
                    heapq.heappush(self._waiting, place)
                self._pause()
        finally:
            if place is not None:
                self._leave(place)

    async def _try(
        self, work: Callable[[], Awaitable[T]], place: tuple[int, int, asyncio.Event] | None
    ) -> T:
        """One attempt. The next in line may follow once it is not refused for a moment."""
        if place is None:
            return await work()
        task = asyncio.ensure_future(work())
        try:
            done, _ = await asyncio.wait({task}, timeout=_ACCEPTED_S)
            if not done:
                self._leave(place)
                self._pause_s = _SHORTEST_PAUSE_S
            return await task
        finally:
            if task.cancel():
                await asyncio.wait({task})

    def _join(self, caller: str) -> tuple[int, int, asyncio.Event]:
        turn = max(self._turn, self._last_turns.get(caller, 0)) + 1
        self._last_turns[caller] = turn
        place = (turn, next(self._numbers), asyncio.Event())
        heapq.heappush(self._waiting, place)
        return place

    def _leave(self, place: tuple[int, int, asyncio.Event]) -> None:
        if place not in self._waiting:
            return
        self._waiting.remove(place)
        heapq.heapify(self._waiting)
        self._turn = max(self._turn, place[0])
        if not self._waiting:
            self._last_turns.clear()
            self._turn = 0
        self._wake()

    async def _wait(self, place: tuple[int, int, asyncio.Event], give_up_at: float) -> None:
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

    def _note_answer(self) -> None:
        """There is room now."""
        self._pause_s, self._next_try = _SHORTEST_PAUSE_S, -math.inf
        self._wake()

    def _pause(self) -> None:
        # Other gateways hold requests for the same deployment: they should not try at one time.
        self._next_try = time.monotonic() + self._pause_s * (1 - random.random() / 4)  # noqa: S311
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        self._wake()

    def _wake(self) -> None:
        if self._waiting:
            self._waiting[0][2].set()
