"""How many requests a client has in flight: fewer when the service is full, more while it answers.

Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the increase and decrease
algorithms", 1989; in TCP: Jacobson, "Congestion avoidance and control", 1988): a round of answers
adds one, being told `overloaded` halves. What is refused together counts once. Whoever asked first
goes first, however often it was refused.

It knows counts and clocks. It sends nothing and never waits; any thread and any event loop may wait
for a ticket.
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
"""Done once its holder may send. The result says between which two retreats that was."""


class Window:
    """At most `most` requests in flight, and fewer after a retreat. `clock`: seconds."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._limit = float(most)
        self._num_in_flight = 0
        self._era = 0
        self._num_retreats = 0  # since the last answer
        self._opens_at = -math.inf
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, Ticket]] = []
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return int(self._limit)

    def number(self) -> int:
        """A number in the line: who has a lower one goes first."""
        return next(self._numbers)

    def ask(self, number: int) -> Ticket:
        """Stand in the line. The ticket is to be given back with `leave`, whatever becomes of
        it."""
        ticket: Ticket = Future()
        with self._lock:
            heapq.heappush(self._waiting, (number, next(self._numbers), ticket))
            self._let_in()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Out of the line, or no longer in flight."""
        if ticket.cancel():
            return
        with self._lock:
            self._num_in_flight -= 1
            self._let_in()

    def advance(self) -> None:
        """An answer came: the service takes work, and one more per round may be in flight."""
        with self._lock:
            self._limit = min(self._most, self._limit + 1 / self._limit)
            self._num_retreats, self._opens_at = 0, -math.inf
            self._let_in()

    def retreat(self, era: int) -> int:
        """`overloaded` came to who was let in with this result; it has not left yet. Returns how
        many retreats came before this one without an answer between."""
        with self._lock:
            if era == self._era:
                self._era += 1
                self._num_retreats += 1
                self._limit = min(self._limit, self._num_in_flight) / 2
            # The others were refused as well, or are what the service holds.
            self._limit = max(1.0, min(self._limit, self._num_in_flight - 1))
            return max(0, self._num_retreats - 1)

    def close(self, seconds: float) -> None:
        """Nobody should send until then, or until an answer comes: all that is known is that there
        is no room."""
        self._opens_at = max(self._opens_at, self._clock() + seconds)

    def closed_s(self) -> float:
        """Seconds until who is in may send; 0 if it may now."""
        return max(0.0, self._opens_at - self._clock())

    def _let_in(self) -> None:
        while self._waiting and self._num_in_flight < self.limit:
            ticket = heapq.heappop(self._waiting)[-1]
            if ticket.set_running_or_notify_cancel():
                self._num_in_flight += 1
                ticket.set_result(self._era)
