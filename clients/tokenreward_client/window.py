"""How many requests a client has in flight: fewer when the service is full, more while it answers.

The rule is additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the increase and
decrease algorithms", 1989; in TCP: Jacobson, "Congestion avoidance and control", 1988). A round of
answers adds one request; a reply that says `overloaded` halves their number. Requests wait in a
line, and the one that joined first goes first, however often it was refused.

This module knows counts and clocks. It sends nothing and never waits: a ticket is a future, for
which any thread and any event loop may wait.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

Ticket = Future[int]
"""A place in the line. It is done once its request may be sent; its result is the epoch of that
moment, which `Window.retreat` wants back."""


class Window:
    """A limit on the requests in flight, which `retreat` lowers and `advance` raises again.

    A window with a limit of one that never retreats is a lock: its holders follow one another in
    the order in which they joined.

    Args:
        most: The limit at the start, and its highest value.
        clock: Gives the time in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        # A fraction: each answer adds 1 / limit, so that a round of them adds one.
        self._limit = float(most)
        self._num_in_flight = 0
        # Counts how often the limit was halved. A refusal of a request that was sent in an earlier
        # epoch says nothing new: the limit has been halved since.
        self._epoch = 0
        self._num_halvings = 0  # since the last answer
        self._opens_at = -math.inf
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, Ticket]] = []
        self._resting: dict[Ticket, float] = {}  # and from when on an answer wakes each
        # Calls of several threads share a window. What follows from what it held before is written
        # under the lock; `limit` and `closed_s` read one number each, and need none.
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """The number of requests that may be in flight now."""
        return int(self._limit)

    def next_number(self) -> int:
        """A number for the line. A request keeps its number for all its tries, and so its place."""
        return next(self._numbers)

    def join(self, number: int) -> Ticket:
        """Join the line. The lowest number is admitted first.

        The caller gives the ticket back with `leave`, whether or not it was admitted.
        """
        ticket: Ticket = Future()
        with self._lock:
            # The second number keeps the heap from comparing tickets of one request.
            heapq.heappush(self._waiting, (number, next(self._numbers), ticket))
            self._admit()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket back: its request has ended, or is not to be sent any more."""
        # Only a ticket that was not admitted can be cancelled. `_admit` drops it from the line.
        if ticket.cancel():
            return
        with self._lock:
            self._num_in_flight -= 1
            self._admit()

    def advance(self) -> None:
        """Note an answer: the service has room. Raises the limit, opens the window, and ends the
        pauses of requests that were refused a while ago."""
        now = self._clock()
        with self._lock:
            self._limit = min(self._most, self._limit + 1 / self._limit)
            self._num_halvings, self._opens_at = 0, -math.inf
            self._admit()
            rested = [ticket for ticket, wakes_at in self._resting.items() if wakes_at <= now]
            for ticket in rested:
                del self._resting[ticket]
        for ticket in rested:
            ticket.set_result(0)

    def rest(self, least_s: float) -> Ticket:
        """A ticket that is done at the next answer, but for answers within `least_s` from now.

        Without these seconds a request that only its own deployment refuses would come back at
        every answer of another one. It is given back with `stop_resting`.
        """
        ticket: Ticket = Future()
        with self._lock:
            self._resting[ticket] = self._clock() + least_s
        return ticket

    def stop_resting(self, ticket: Ticket) -> None:
        """Give a ticket of `rest` back."""
        with self._lock:
            self._resting.pop(ticket, None)

    def retreat(self, epoch: int) -> int:
        """Note that a request was refused with `overloaded`, and lower the limit.

        Requests that are refused together halve the limit once.

        Args:
            epoch: The result of the request's ticket, which is still to be given back.

        Returns:
            How many times the limit was halved before, since the last answer: 0 for the first
            refusals after an answer.
        """
        with self._lock:
            if epoch == self._epoch:
                self._epoch += 1
                self._num_halvings += 1
                self._limit = min(self._limit, self._num_in_flight) / 2
            # The service refuses the others in flight as well, or holds them: it has room for no
            # more than these.
            self._limit = max(1.0, min(self._limit, self._num_in_flight - 1))
            return max(0, self._num_halvings - 1)

    def close(self, seconds: float) -> None:
        """Ask all requests to wait, admitted ones too, for so long or until an answer comes."""
        with self._lock:
            self._opens_at = max(self._opens_at, self._clock() + seconds)

    def closed_s(self) -> float:
        """Seconds for which an admitted request should still wait; 0 if it may be sent now."""
        return max(0.0, self._opens_at - self._clock())

    def _admit(self) -> None:
        while self._waiting and self._num_in_flight < self.limit:
            ticket = heapq.heappop(self._waiting)[-1]
            # False for a ticket that was cancelled in the line.
            if ticket.set_running_or_notify_cancel():
                self._num_in_flight += 1
                ticket.set_result(self._epoch)
