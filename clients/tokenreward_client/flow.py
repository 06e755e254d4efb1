"""What to send, when to try again and when to give up: generators that yield steps and do no I/O.

A flow yields `Send` and is sent back an `httpx.Response` or the `httpx.RequestError` that came
instead; it yields `Sleep` and is sent None; it yields `Together` and is sent the list of what the
inner flows returned; it yields `Wait` and is sent whether the ticket came in time. The sync and the
async client drive the same flows. It knows nothing of rewards; what is wrong with an answer is for
`refusal` to say.

`overloaded`, `loading` and `updating` are no failures: the service says "later". They cost no try,
only time; the deadline alone ends it. When it is overloaded, the client's `Window`, through which
every request goes, lets fewer through. A connection that cannot be made is a failure: nobody says
that there will ever be one.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from tokenreward.errors import Loading, Overloaded, Updating
from tokenreward.wire import JSON_TYPE
from tokenreward.wire.paths import REQUEST_ID_HEADER, REWARDS_PATH, TIMEOUT_HEADER
from tokenreward_client.errors import ClientError, DeadlineExceeded, ServerRefused
from tokenreward_client.response import OUR_ID, failure, retry_after_s
from tokenreward_client.window import Ticket, Window

# The deadline travels in whole milliseconds, and the server refuses 0.000.
LEAST_LEFT_S = 0.001
# A service refuses a request that names a later deadline (its setting `max_timeout_s`, by default).
# A call may last longer: it makes more than one request.
LATEST_DEADLINE_S = 3600.0
# While the window is closed an answer to somebody else may open it.
_LOOK_AGAIN_S = 0.1
# What the service says while it has no room or no weights yet.
LATER = frozenset({Overloaded.code, Loading.code, Updating.code})
TOO_LATE = "the deadline passed before the request could be sent"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send one request; a body makes it a POST. `timeout_s`: the answer is worth nothing after
    that."""

    path: str
    body: bytes | None
    timeout_s: float
    content_type: str = JSON_TYPE
    request_id: str = field(default_factory=lambda: OUR_ID + uuid.uuid4().hex)

    @property
    def headers(self) -> dict[str, str]:
        """The caller's deadline travels with the request, so that the server starts no work past
        it."""
        headers = {
            TIMEOUT_HEADER: f"{min(self.timeout_s, LATEST_DEADLINE_S):.3f}",
            REQUEST_ID_HEADER: self.request_id,
        }
        return headers if self.body is None else headers | {"content-type": self.content_type}


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Run these flows side by side; the answers keep their order."""

    flows: Sequence[Flow[Any]]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a window to let the ticket in. `timeout_s`: it is worth nothing after that."""

    ticket: Ticket
    timeout_s: float


Step = Send | Sleep | Together | Wait
Flow = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long. Pauses double from `first_pause_s` to `longest_pause_s`, less a
    quarter at most. `max_retries` bounds the tries after failures; waiting because the service says
    "later" is none.
    """

    max_retries: int = 10
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    random: Callable[[], float] = random.random

    def pause_s(self, num_retries: int, retry_after_s: float) -> float:
        """Seconds before retry number `num_retries` (from 0); never less than the server asked
        for."""
        backoff_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(num_retries, 30))
        jitter = self.random()
        # A Retry-After is stretched, not shortened: callers refused together should not come back
        # together.
        return max(backoff_s * (1 - jitter / 4), retry_after_s * (1 + jitter / 10))


class Attempts:
    """What is left to one request: tries and seconds until `deadline` (on the retry's clock), and
    its place in the line at `window`, by default one of its own."""

    def __init__(self, retry: Retry, deadline: float, window: Window | None = None) -> None:
        self.retry = retry
        self.deadline = deadline
        self.window = window if window is not None else Window(1, retry.clock)
        self.number = self.window.number()
        self._num_tries = self._num_retries = self._num_waits = self._era = 0

    def left_s(self) -> float:
        """Seconds left. Raises DeadlineExceeded if there is less than a millisecond."""
        left_s = self.deadline - self.retry.clock()
        if left_s < LEAST_LEFT_S:
            raise DeadlineExceeded(TOO_LATE)
        return left_s

    def enter(self, ticket: Ticket) -> Flow[None]:
        """Wait until the window lets the ticket in, and while it is closed, though not past half of
        what time is left. Raises DeadlineExceeded."""
        yield from let_in(ticket, self.left_s())
        self._era = ticket.result()
        self._num_tries += 1
        latest = self.retry.clock() + self.left_s() / 2
        while (
            closed_s := min(self.window.closed_s(), latest - self.retry.clock())
        ) >= LEAST_LEFT_S:
            yield Sleep(min(closed_s, _LOOK_AGAIN_S))

    def pause_s(
        self,
        error: ClientError,
        retry_after_s: float = 0.0,
        *,
        codes: AbstractSet[str] = frozenset(),
    ) -> float:
        """Seconds until the next try. `codes`: all that the service said, where trying again may
        help. Raises `error` if it is final or no try is left; DeadlineExceeded."""
        if codes == {Overloaded.code}:
            pause_s = self.retry.pause_s(self.window.retreat(self._era), retry_after_s)
            # What one request was told to wait is not what others need.
            self.window.close(min(pause_s, self.retry.longest_pause_s))
        elif codes and codes <= LATER:
            pause_s = self.retry.pause_s(self._num_waits, retry_after_s)
            self._num_waits += 1
        elif not error.retryable or self._num_retries >= self.retry.max_retries:
            raise error
        else:
            pause_s = self.retry.pause_s(self._num_retries, retry_after_s)
            self._num_retries += 1
        if self.retry.clock() + pause_s >= self.deadline:
            raise DeadlineExceeded(f"gave up after {self._num_tries} tries: {error}") from error
        return pause_s


def let_in(ticket: Ticket, timeout_s: float) -> Flow[None]:
    """Wait until the window lets the ticket in. Raises DeadlineExceeded."""
    if not ticket.done() and not (yield Wait(ticket, timeout_s)):
        raise DeadlineExceeded(TOO_LATE)


class Road:
    """The path that a request takes. `detour` is called, once, when the direct path turns out to
    lead nowhere."""

    def __init__(self, path: str, detour: Callable[[], None] | None = None) -> None:
        self.path = path
        self._detour = detour

    def turn_back(self) -> bool:
        """Go through the gateway from now on; False if this road has no other way."""
        if self._detour is None:
            return False
        self._detour()
        self.path, self._detour = REWARDS_PATH, None
        return True


def answered(
    road: Road, write: Callable[[], bytes] | None, attempts: Attempts, content_type: str = JSON_TYPE
) -> Flow[httpx.Response]:
    """Send until a 200 comes back. `write`: the body, made anew for each try; without one it is a
    GET.

    Raises ServerRefused, ConnectionFailed, DeadlineExceeded, BadReply.
    """
    while True:
        ticket = attempts.window.ask(attempts.number)
        try:
            yield from attempts.enter(ticket)
            send = Send(
                road.path, None if write is None else write(), attempts.left_s(), content_type
            )
            answer = yield send
            error = failure(answer, None if write is None else send.request_id)
            if error is None:
                return answer  # type: ignore[no-any-return]  # what `yield` is sent has no static type
            if isinstance(error, ServerRefused) and error.status == 404 and road.turn_back():
                continue
            asked_s = retry_after_s(answer, attempts.retry.wall_clock)
            codes = {error.code} if error.code is not None and error.retryable else frozenset[str]()
            pause_s = attempts.pause_s(error, asked_s, codes=codes)
        finally:
            attempts.window.leave(ticket)
        yield Sleep(pause_s)
