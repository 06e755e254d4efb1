"""What to send, when to try again and when to give up: generators that yield steps and do no I/O.

A flow yields `Send` and is sent back an `httpx.Response` or the `httpx.RequestError` that came instead; it yields
`Sleep` and is sent None; it yields `Together` and is sent the list of what the inner flows returned; it yields `Turn`
and is sent the function that ends it, or None if it did not come in time. The sync and the async client drive the same
flows. It knows statuses, headers and the one error body, and nothing of rewards.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from tokenreward.wire import JSON_TYPE, MSGPACK_TYPE, ErrorDetail
from tokenreward_client.errors import BadReply, ClientError, ConnectionFailed, DeadlineExceeded, ServerRefused

GATEWAY_REWARDS = "/v1/rewards"
# The deadline travels in whole milliseconds, and the server refuses 0.000.
LEAST_LEFT_S = 0.001
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
    """Run these flows, at most `max_concurrency` at a time; the answers keep their order.

    `left_s`: the seconds that a flow may wait for its turn; raises DeadlineExceeded once there are none.
    """

    flows: Sequence[Flow[Any]]
    left_s: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Turn:
    """Wait while another call does what needs doing once. `timeout_s`: the turn is worth nothing after that."""

    timeout_s: float


Step = Send | Sleep | Together | Turn
Flow = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how long. Pauses double from `first_pause_s` to `longest_pause_s`, less a quarter at most."""

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
    """What is left to one request: tries and seconds until `deadline` (on the retry's clock)."""

    def __init__(self, retry: Retry, deadline: float) -> None:
        self.retry = retry
        self.deadline = deadline
        self.num_retries = 0

    def left_s(self) -> float:
        """Seconds left. Raises DeadlineExceeded if there is less than a millisecond."""
        left_s = self.deadline - self.retry.clock()
        if left_s < LEAST_LEFT_S:
            raise DeadlineExceeded(TOO_LATE)
        return left_s

    def pause(self, error: ClientError, retry_after_s: float = 0.0) -> Flow[None]:
        """Wait for the next try. Raises `error` if it is final or no try is left; DeadlineExceeded."""
        if not error.retryable or self.num_retries >= self.retry.max_retries:
            raise error
        pause_s = self.retry.pause_s(self.num_retries, retry_after_s)
        if self.retry.clock() + pause_s >= self.deadline:
            raise DeadlineExceeded(f"gave up after {self.num_retries + 1} tries: {error}") from error
        self.num_retries += 1
        yield Sleep(pause_s)


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


def answered(road: Road, body: bytes | None, attempts: Attempts, content_type: str = JSON_TYPE) -> Flow[httpx.Response]:
    """Send until a 200 comes back.

    Raises ServerRefused, ConnectionFailed, DeadlineExceeded, BadReply.
    """
    while True:
        answer = yield Send(road.path, body, attempts.left_s(), content_type)
        error = failure(answer)
        if error is None:
            return answer  # type: ignore[no-any-return]  # what `yield` is sent has no static type
        if isinstance(error, ServerRefused) and error.status == 404 and road.turn_back():
            continue
        yield from attempts.pause(error, retry_after_s(answer, attempts.retry.wall_clock))


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
    status = answer.status_code
    detail = _detail(answer)
    if detail is None:
        retryable = status in _PROXY_STATUSES_TO_RETRY or status >= 500
        message = f"HTTP {status} without the service's error body: a proxy, or another service"
        return ServerRefused(message, status=status, retryable=retryable)
    message = f"{detail.code}: {detail.message}"
    return ServerRefused(message, status=status, code=detail.code, param=detail.param, retryable=detail.retryable)


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
