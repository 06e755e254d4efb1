"""When to try a request again, and when to give up.

A reply with `overloaded`, `loading` or `updating` is no failure: the service says "later". It costs
no try, only time, and the deadline alone ends the waiting. When the service is overloaded, the
client's `Window`, through which every request goes, admits fewer. A connection that cannot be made
is a failure: nothing says that there will ever be one. But to try one costs little, so it is tried
every half second, and the tries of one backoff count as one.

The first answer to any request ends the pauses of all those that were told "later" or had no
connection. Other failures may be of one deployment alone: their pauses are kept.

This module knows codes and clocks. It sends nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from tokenreward.errors import Loading, Overloaded, Updating
from tokenreward_client.errors import ClientError, ConnectionFailed, DeadlineExceeded
from tokenreward_client.flow import LEAST_LEFT_S, Flow
from tokenreward_client.window import Ticket, Window

# What the service says while it has no room or no weights yet.
LATER = frozenset({Overloaded.code, Loading.code, Updating.code})
TOO_LATE = "the deadline passed before the request could be sent"
# While the window is closed, the answer to another request may open it.
_LOOK_AGAIN_S = 0.1
_NO_CONNECTION = frozenset({ConnectionFailed.code})
_LONGEST_UNCONNECTED_S = 0.5


@dataclass(frozen=True, slots=True)
class Retry:
    """How often to try again, and how long to pause before.

    Attributes:
        max_retries: Tries after failures, beyond the first. A reply that says "later" is no
            failure.
        first_pause_s: The pause before the first retry, in seconds. Each further pause is twice as
            long; random jitter shortens each by a quarter at most.
        longest_pause_s: No pause is longer, unless the server asks for more.
        clock: Seconds that only grow; deadlines are on this clock.
        wall_clock: Seconds since 1970, for dates in `Retry-After`.
        random: A number from 0 to 1, for the jitter.
    """

    max_retries: int = 10
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    random: Callable[[], float] = random.random

    def pause_s(self, num_retries: int, retry_after_s: float) -> float:
        """Seconds before the next try, after so many retries; never less than the server asked for
        with `retry_after_s`."""
        # 2**30 half seconds are past any longest pause, and a larger power may overflow.
        backoff_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(num_retries, 30))
        jitter = self.random()
        # A Retry-After is stretched, not shortened: callers refused together should not come back
        # together.
        return max(backoff_s * (1 - jitter / 4), retry_after_s * (1 + jitter / 10))


class Attempts:
    """The tries and the time that are left to one request, and its place in the window's line.

    Args:
        retry: How often to try, and how long to pause.
        deadline: When to give up, on the clock of `retry`.
        window: The window that the request goes through; without one it waits for no other.
    """

    def __init__(self, retry: Retry, deadline: float, window: Window | None = None) -> None:
        self.retry = retry
        self.deadline = deadline
        self.window = window if window is not None else Window(1, retry.clock)
        self.num_tries = 0
        self._number = self.window.next_number()
        self._epoch = self._num_retries = self._num_waits = 0
        self._paused_s = 0.0  # of the backoff that passes in several short pauses

    def left_s(self) -> float:
        """Seconds left. Raises DeadlineExceeded if there is less than a millisecond."""
        left_s = self.deadline - self.retry.clock()
        if left_s < LEAST_LEFT_S:
            raise DeadlineExceeded(TOO_LATE)
        return left_s

    def join_line(self) -> Ticket:
        """A ticket for the next try, to be given back to the window."""
        return self.window.join(self._number)

    def wait_turn(self, ticket: Ticket) -> Flow[None]:
        """Wait until the window admits the ticket, and while the window is closed.

        A closed window holds a request for at most half of the time that is left: a request with
        little time is better sent than never tried.

        Raises:
            DeadlineExceeded: The window did not admit the ticket in time.
        """
        yield from wait_for(ticket, self.left_s())
        self._epoch = ticket.result()
        latest = self.retry.clock() + self.left_s() / 2
        self.num_tries += 1
        while True:
            closed_s = min(self.window.closed_s(), latest - self.retry.clock())
            if closed_s < LEAST_LEFT_S:
                return
            yield min(closed_s, _LOOK_AGAIN_S)

    def next_pause_s(
        self, codes: AbstractSet[str], *, is_retryable: bool, retry_after_s: float = 0.0
    ) -> float | None:
        """Decide whether there is another try, and count it.

        If the service is overloaded and nothing else is wrong, the window retreats and closes.

        Args:
            codes: The error codes in the reply that another try may cure.
            is_retryable: Whether another try may help. A reply that only says "later" is tried
                again in any case.
            retry_after_s: Seconds that the server asked to wait.

        Returns:
            Seconds to wait before the next try; None if there is none.
        """
        if codes == {Overloaded.code}:
            pause_s = self.retry.pause_s(self.window.retreat(self._epoch), retry_after_s)
            # The server may ask this request to wait for long. Others need not wait as long.
            self.window.close(min(pause_s, self.retry.longest_pause_s))
            return pause_s
        if codes and codes <= LATER:
            self._num_waits += 1
            return self.retry.pause_s(self._num_waits - 1, retry_after_s)
        if not is_retryable or self._num_retries >= self.retry.max_retries:
            return None
        pause_s = self.retry.pause_s(self._num_retries, retry_after_s)
        if codes == _NO_CONNECTION:
            left_s = pause_s - self._paused_s
            if left_s > _LONGEST_UNCONNECTED_S:
                self._paused_s += _LONGEST_UNCONNECTED_S
                return _LONGEST_UNCONNECTED_S
            pause_s = max(left_s, self.retry.first_pause_s)
        self._paused_s = 0.0
        self._num_retries += 1
        return pause_s

    def pause(self, pause_s: float, codes: AbstractSet[str]) -> Flow[None]:
        """Wait so long, or until another request is answered if that says that this one may be.

        Args:
            pause_s: Seconds, as `next_pause_s` gave them.
            codes: The error codes that it was given.
        """
        if not codes or not codes <= LATER | _NO_CONNECTION:
            yield pause_s
            return
        ticket = self.window.rest(self.retry.first_pause_s)
        try:
            yield ticket, pause_s
        finally:
            self.window.stop_resting(ticket)

    def has_time_for(self, pause_s: float) -> bool:
        """Whether the deadline comes after such a pause."""
        return self.retry.clock() + pause_s < self.deadline

    def gave_up(self, error: ClientError | None) -> DeadlineExceeded:
        """What to raise when the deadline has come.

        Args:
            error: What ended the last try; None if there was none.
        """
        if error is None:
            return DeadlineExceeded(TOO_LATE)
        return DeadlineExceeded(f"gave up after {self.num_tries} tries: {error}")


def wait_for(ticket: Ticket, timeout_s: float) -> Flow[None]:
    """Wait until a window admits the ticket. Raises DeadlineExceeded if it does not in time."""
    if not ticket.done() and not (yield ticket, timeout_s):
        raise DeadlineExceeded(TOO_LATE)
