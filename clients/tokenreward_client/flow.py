"""What to send, when to try again and when to give up: generators that yield steps and do no I/O.

A flow yields `Send` and is sent back an `httpx.Response` or the `httpx.RequestError` that came instead; it yields
`Sleep` and is sent None; it yields `Together` and is sent the list of what the inner flows returned; it yields `Wait`
and is sent whether the ticket came in time. The sync and the async client drive the same flows. It knows statuses,
headers and the one error body, and nothing of rewards.

`overloaded`, `loading` and `updating` are no failures: the service says "later". They cost no try, only time; the
deadline alone ends it. When it is overloaded, the client's `Window`, through which every request goes, lets fewer
through. A connection that cannot be made is a failure: nobody says that there will ever be one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from tokenreward.errors import Loading, Overloaded, Updating
from tokenreward.wire import JSON_TYPE, MSGPACK_TYPE, ErrorDetail
from tokenreward_client.errors import BadReply, ClientError, ConnectionFailed, DeadlineExceeded, ServerRefused
from tokenreward_client.window import Ticket, Window

GATEWAY_REWARDS = "/v1/rewards"
REQUEST_ID = "x-request-id"
# The deadline travels in whole milliseconds, and the server refuses 0.000.
LEAST_LEFT_S = 0.001
# While the window is closed an answer to somebody else may open it.
_LOOK_AGAIN_S = 0.1
# What the service says while it has no room or no weights yet.
LATER = frozenset({Overloaded.code, Loading.code, Updating.code})
TOO_LATE = "the deadline passed before the request could be sent"
# Without our error body these come from a proxy: a route not yet mounted, a slow read, a rate limit.
_PROXY_STATUSES_TO_RETRY = frozenset({404, 408, 429})
_NEVER_RETRIED = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.TooManyRedirects, httpx.DecodingError)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send one request; a body makes it a POST. `timeout_s`: the answer is worth nothing after that."""

    path: str
    body: bytes | None
    timeout_s: float
    content_type: str = JSON_TYPE

    @property
    def headers(self) -> dict[str, str]:
        """The caller's deadline travels with the request, so that the server starts no work past it."""
        headers = {"x-request-timeout-seconds": f"{self.timeout_s:.3f}"}
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
    """How often and how long. Pauses double from `first_pause_s` to `longest_pause_s`, less a quarter at most.
    `max_retries` bounds the tries after failures; waiting because the service says "later" is none.
    """

    max_retries: int = 10
    first_pause_s: float = 0.5
    longest_pause_s: float = 8.0
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    random: Callable[[], float] = random.random

    def pause_s(self, num_retries: int, retry_after_s: float) -> float:
        """Seconds before retry number `num_retries` (from 0); never less than the server asked for."""
        backoff_s = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(num_retries, 30))
        jitter = self.random()
        # A Retry-After is stretched, not shortened: callers refused together should not come back together.
        return max(backoff_s * (1 - jitter / 4), retry_after_s * (1 + jitter / 10))


class Attempts:
    """What is left to one request: tries and seconds until `deadline` (on the retry's clock), and its place in the line
    at `window`, by default one of its own."""

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
        """Wait until the window lets the ticket in, and while it is closed, though not past half of what time is left.
        Raises DeadlineExceeded."""
        yield from let_in(ticket, self.left_s())
        self._era = ticket.result()
        self._num_tries += 1
        latest = self.retry.clock() + self.left_s() / 2
        while (closed_s := min(self.window.closed_s(), latest - self.retry.clock())) >= LEAST_LEFT_S:
            yield Sleep(min(closed_s, _LOOK_AGAIN_S))

    def pause_s(
        self, error: ClientError, retry_after_s: float = 0.0, *, codes: AbstractSet[str] = frozenset()
    ) -> float:
        """Seconds until the next try. `codes`: all that the service said, where trying again may help. Raises `error`
        if it is final or no try is left; DeadlineExceeded."""
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
    """The path that a request takes. `detour` is called, once, when the direct path turns out to lead nowhere."""

    def __init__(self, path: str, detour: Callable[[], None] | None = None) -> None:
        self.path = path
        self._detour = detour

    def turn_back(self) -> bool:
        """Go through the gateway from now on; False if this road has no other way."""
        if self._detour is None:
            return False
        self._detour()
        self.path, self._detour = GATEWAY_REWARDS, None
        return True


def answered(
    road: Road, write: Callable[[], bytes] | None, attempts: Attempts, content_type: str = JSON_TYPE
) -> Flow[httpx.Response]:
    """Send until a 200 comes back. `write`: the body, made anew for each try; without one it is a GET.

    Raises ServerRefused, ConnectionFailed, DeadlineExceeded, BadReply.
    """
    while True:
        ticket = attempts.window.ask(attempts.number)
        try:
            yield from attempts.enter(ticket)
            answer = yield Send(road.path, None if write is None else write(), attempts.left_s(), content_type)
            error = failure(answer)
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


def failure(answer: httpx.Response | httpx.RequestError) -> ClientError | None:
    """What is wrong with an answer, or None for a 200."""
    if isinstance(answer, httpx.DecodingError):
        return BadReply(f"the reply's content encoding is broken: {answer}")
    if isinstance(answer, httpx.RequestError):
        error = ConnectionFailed(f"no answer from {_origin(answer)}: {str(answer) or type(answer).__name__}")
        error.retryable = not isinstance(answer, _NEVER_RETRIED)
        return error
    if answer.status_code == 200:
        return None
    return _refusal(answer)


def retry_after_s(answer: httpx.Response | httpx.RequestError, wall_clock: Callable[[], float]) -> float:
    """Seconds that the `Retry-After` header asks for (a number or an HTTP date); 0 without one that can be read."""
    if isinstance(answer, httpx.RequestError) or "retry-after" not in answer.headers:
        return 0.0
    value = answer.headers["retry-after"]
    try:
        seconds = float(value)
    except ValueError:
        seconds = _timestamp(value, wall_clock()) - _timestamp(answer.headers.get("date", ""), wall_clock())
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _timestamp(http_date: str, default: float) -> float:
    """The server's own `Date` is the start of the wait where it has one: two clocks need not agree."""
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return default


def _refusal(answer: httpx.Response) -> ServerRefused:
    status, request_id = answer.status_code, answer.headers.get(REQUEST_ID)
    # Who is at fault for a 5xx finds it in a log.
    traced = f" (request {request_id})" if status >= 500 and request_id else ""
    detail = _detail(answer)
    if detail is None:
        retryable = status in _PROXY_STATUSES_TO_RETRY or status >= 500
        message = f"HTTP {status} without the service's error body: a proxy, or another service{traced}"
        error = ServerRefused(message, status=status, retryable=retryable)
    else:
        message, retryable = f"{detail.code}: {detail.message}{traced}", detail.retryable
        error = ServerRefused(message, status=status, code=detail.code, param=detail.param, retryable=retryable)
    error.request_id = request_id
    return error


def _detail(answer: httpx.Response) -> ErrorDetail | None:
    """The service's error body. Other software answers `{"error": {...}}` too; `retryable` tells ours."""
    try:
        body = _content(answer)
    except (ValueError, RecursionError):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("retryable"), bool):
        return None
    try:
        return ErrorDetail.model_validate(error)
    except ValidationError:
        return None


def _content(answer: httpx.Response) -> Any:
    """Plain objects. Only who sends msgpack is answered in it, and has its library."""
    if not answer.headers.get("content-type", "").startswith(MSGPACK_TYPE):
        return answer.json()
    from tokenreward.wire.msgpack import unpack

    return unpack(answer.content)


def _origin(error: httpx.RequestError) -> str:
    """Scheme, host and port: the URL's user part may hold a password."""
    try:
        url = error.request.url
    except RuntimeError:  # httpx's way to say that the error came without a request
        return "the server"
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
