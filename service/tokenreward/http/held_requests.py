"""The line of requests that are held: who tries next while a service has no room, and when.

A held request stands in a line in which callers take turns, and in which a request may pass a
larger one. This module knows errors, seconds and sizes, and no bodies.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tokenreward.errors import InternalError, Loading, Overloaded, RequestError, drop_frames

T = TypeVar("T")

SHORTEST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_RETRYABLE_STATUSES = (Loading.status, InternalError.status)
# Requests held at a time for one deployment. Without a limit those of a dead deployment would fill
# a gateway, and callers of the others would find no room there.
MAX_HELD = 256
_MAX_FAULTS = 3  # tries that end in a 500: it may be the request that breaks replicas
# A full service refuses sooner than this. A request that it still has by then is in its queue.
_REFUSAL_S = 0.1
# Requests behind the first one that are refused during one of its pauses. Each sends a body.
_MAX_REFUSED = 8


@dataclass(order=True, slots=True)
class _LinePlace:
    """Where a request stands in the line.

    Attributes:
        turn: Its caller's turn. The least one is the first.
        number: The order of arrival, which decides between equal turns.
        size: Bytes of the request.
        num_passed: Bytes of the requests that passed it while it was the first.
        event: Wakes the request.
    """

    turn: int
    number: int
    size: int = field(compare=False)
    num_passed: int = field(default=0, compare=False)
    event: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class HeldRequests:
    """The requests that are held for one deployment, or for one replica.

    The first request tries again after pauses of 50 ms to 1 s, and at once when another one was
    answered. The next request tries once the first is answered, or has gone 0.1 s without a
    refusal. So requests are served in turn, and mostly one held request at a time asks a full
    service.

    A large request may find no room where smaller ones do. While the first one pauses, requests
    behind it try that are smaller than all that were refused since it tried. The accepted ones pass
    it. Together they may have as many bytes as the first one. After that none passes, and the
    service empties until the first one fits. So it waits at most about twice as long as it would if
    nobody passed. Bytes stand for what a request needs, which the service alone knows.

    Callers take turns, as in the queue of a replica: a new request takes its caller's next turn,
    behind the first request of every other caller. A request that finds `MAX_HELD` in the line
    is refused at once.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._waiting: list[_LinePlace] = []  # sorted
        self._turn = 0  # the greatest of the requests that left the line as its first
        self._last_turns: dict[str, int] = {}  # of each caller, while anybody waits
        self._pause_s = SHORTEST_PAUSE_S
        self._next_try = -math.inf  # of the first one, by time.monotonic
        self._trying: _LinePlace | None = None  # whether it is refused is not known yet
        # Since the first one tried: the smallest size that was refused, and how many requests
        # behind it were.
        self._smallest_refused = 0
        self._num_refused = 0

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
        size: int = 0,
        before_pause: Callable[[], None] = lambda: None,
        status_of: Callable[[T], int] = lambda _: 200,
        max_faults: int = _MAX_FAULTS,
    ) -> T:
        """The result of `work`. It is tried again after a 503 (no capacity) until time is up, and
        after a 500 (a replica that died, for example) until `max_faults` of them.

        Args:
            work: Makes one attempt. If it fails, it must have given back what it took of budgets.
            give_up_at: When the request is held no longer. At least one attempt is made.
            caller: Who asks.
            size: Bytes of the request.
            before_pause: Called once, before the request is held. It may raise Overloaded.
            status_of: The status of a result, which may be a refusal, too.
            max_faults: After how many failures with a 500 the last one is raised.

        Raises:
            RequestError: The last failure, once time or the tries are used up. An error that may
                not be retried, at once. Overloaded, if the line is full.
        """
        place: _LinePlace | None = None
        num_faults = 0
        if self._waiting and time.monotonic() < give_up_at:
            before_pause()
            place = self._join(caller, size)
        try:
            while True:
                if place is not None:
                    await self._wait(place, give_up_at)
                is_last = time.monotonic() + SHORTEST_PAUSE_S > give_up_at
                outcome = await self._try(work, place)
                status = outcome.status if isinstance(outcome, RequestError) else status_of(outcome)
                num_faults += status == InternalError.status
                if is_last or status not in _RETRYABLE_STATUSES or num_faults >= max_faults:
                    return self._end(outcome, place, has_room=status not in _RETRYABLE_STATUSES)
                if place is None:
                    before_pause()
                    place = self._join(caller, size)
                self._note_refusal(place, outcome)
        finally:
            if place is not None:
                self._leave(place)

    def _end(self, outcome: T | RequestError, place: _LinePlace | None, *, has_room: bool) -> T:
        """Returns or raises what came of a request. If there was room, the first one tries."""
        if has_room:
            self._pause_s, self._next_try = SHORTEST_PAUSE_S, -math.inf
            if place is not None:
                self._leave(place, is_accepted=True)
            self._wake()
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome

    async def _try(
        self, work: Callable[[], Awaitable[T]], place: _LinePlace | None
    ) -> T | RequestError:
        """What came of one attempt; an error only if another attempt may end otherwise. The next in
        line may follow once it is not refused for a moment."""
        task: asyncio.Future[T] | None = None
        try:
            if place is None:
                return await work()
            self._trying = place
            task = asyncio.ensure_future(work())
            done, _ = await asyncio.wait({task}, timeout=_REFUSAL_S)
            if not done:
                self._leave(place, is_accepted=True)
            return await task
        except RequestError as error:
            if not error.retryable:
                raise
            return error
        finally:
            if task is not None and task.cancel():
                await asyncio.wait({task})

    def _join(self, caller: str, size: int) -> _LinePlace:
        if len(self._waiting) >= MAX_HELD:
            raise Overloaded(f"{MAX_HELD} requests wait for room already", retry_after_s=1)
        turn = max(self._turn, self._last_turns.get(caller, 0)) + 1
        self._last_turns[caller] = turn
        place = _LinePlace(turn, next(self._numbers), size)
        bisect.insort(self._waiting, place)
        return place

    def _note_refusal(self, place: _LinePlace, outcome: object) -> None:
        """Lets a refused request stand where it stood. If it is the first one, a pause is next,
        and else the next one that may pass the first. The refusal is kept until the next try."""
        if place not in self._waiting:  # it was taken for accepted
            # Turns begin anew when the line is empty.
            place.turn = min(place.turn, self._turn + 1)
            bisect.insort(self._waiting, place)
        if self._trying is place:
            self._trying = None
        if place is self._waiting[0]:
            # Other gateways hold requests for the same deployment: not all try at one time.
            pause_s = self._pause_s * (1 - random.random() / 4)  # noqa: S311
            self._next_try = time.monotonic() + pause_s
            self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
            self._smallest_refused, self._num_refused = place.size, 0
        else:
            self._smallest_refused = min(self._smallest_refused, place.size)
            self._num_refused += 1
        if isinstance(outcome, RequestError):
            drop_frames(outcome)
        self._wake()

    def _leave(self, place: _LinePlace, *, is_accepted: bool = False) -> None:
        if place not in self._waiting:
            return
        first = self._waiting[0]
        if is_accepted and place is not first:
            first.num_passed += place.size
        self._waiting.remove(place)
        if self._trying is place:
            self._trying = None
        if place is first:
            self._turn = max(self._turn, place.turn)
        if not self._waiting:
            self._last_turns.clear()
            self._turn = 0
        self._wake()

    async def _wait(self, place: _LinePlace, give_up_at: float) -> None:
        """Returns when the request may try: it is the first after its pause, or may pass the first,
        or time is up."""
        while True:
            place.event.clear()
            left_s = min(give_up_at, self._try_at(place)) - time.monotonic()
            if left_s <= 0:
                return
            try:
                async with asyncio.timeout(left_s):
                    await place.event.wait()
            except TimeoutError:
                pass

    def _try_at(self, place: _LinePlace) -> float:
        """When a request may try if nothing changes, by time.monotonic."""
        if self._trying is not None:
            return math.inf
        if place is self._waiting[0]:
            return self._next_try
        return -math.inf if place is self._passer() else math.inf

    def _passer(self) -> _LinePlace | None:
        """The request that may try while the first one pauses."""
        first = self._waiting[0]
        if time.monotonic() >= self._next_try or self._num_refused >= _MAX_REFUSED:
            return None
        most = min(self._smallest_refused - 1, first.size - first.num_passed)
        places = [place for place in self._waiting[1:] if place.size <= most]
        if self._num_refused == _MAX_REFUSED - 1:  # the last one: no other is as likely to fit
            return min(places, key=lambda place: place.size, default=None)
        return next(iter(places), None)

    def _wake(self) -> None:
        """Wakes the requests that may try now, or when their pause is over."""
        if not self._waiting:
            return
        self._waiting[0].event.set()
        passer = self._passer()
        if passer is not None:
            passer.event.set()
