"""What stands in front of every HTTP application of ours: request id, API keys, body limit,
deadline, the error body.

Plain ASGI, so that a replica and the front share it without a framework. It knows no scorers and
never reads a payload: what it logs of a failure is the exception's type and where it was raised:
messages may quote what a caller sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import SecretStr

from tokenreward.errors import (
    InternalError,
    InvalidField,
    Loading,
    RequestError,
    TooManyItems,
    Unauthorized,
    frames,
    shown,
)
from tokenreward.http.body import IN_A_THREAD_BYTES, Room, for_size, read_body
from tokenreward.http.scope import (
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    headers_of,
    route_of,
    unknown_route,
)
from tokenreward.wire.media import Media, answer_media
from tokenreward.wire.paths import (
    HEALTH_PATH,
    METRICS_PATH,
    READY_PATH,
    REQUEST_ID_HEADER,
    REWARDS_PATH,
    TIMEOUT_HEADER,
)

__all__ = [
    "IN_A_THREAD_BYTES",
    "OPEN_ROUTES",
    "PROBE_METHODS",
    "REWARDS_PATH",
    "TIMEOUT_HEADER",
    "App",
    "ClientGone",
    "Guard",
    "Limits",
    "Message",
    "Receive",
    "Report",
    "Room",
    "Scope",
    "Send",
    "for_size",
    "headers_of",
    "read_body",
    "refuse_many_items",
    "time_limit_s",
    "unknown_route",
    "unless_gone",
]

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Report = Callable[..., None]
T = TypeVar("T")

PROBE_METHODS = ["GET", "HEAD"]  # servers send no body in answer to a HEAD
OPEN_ROUTES = frozenset({HEALTH_PATH, READY_PATH})

_UNCOUNTED_ROUTES = OPEN_ROUTES | {METRICS_PATH}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ANSWERING_S = 0.03  # between two Ray processes and the caller; measured at 10 to 15 ms
_MOST_MARGIN_S = 0.25

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every request. Ray's proxy adds X-Request-ID to replies by itself: behind it
    we do not echo it."""

    max_body_bytes: int
    max_request_items: int
    request_timeout_s: float
    max_timeout_s: float = 3600.0
    max_body_memory_bytes: int = 256 * 2**20
    api_keys: tuple[SecretStr, ...] = ()
    echo_request_id: bool = True


class Guard:
    """ASGI middleware: refuses callers without a key, names each request, and turns every failure
    into our one body."""

    def __init__(self, app: App, *, limits: Limits, report: Report | None = None) -> None:
        self._app = app
        self._digests = [_digest(key.get_secret_value()) for key in limits.api_keys]
        self._echo_request_id = limits.echo_request_id
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        request_id = _request_id(headers)
        scope["state"]["request_id"] = request_id
        reply = _Reply(
            send, answer_media(headers), request_id=request_id if self._echo_request_id else None
        )
        started = time.perf_counter()
        try:
            if not self._may_enter(route_of(scope), headers):
                raise Unauthorized("a valid API key is required: `Authorization: Bearer KEY`")
            await self._app(scope, receive, reply.send)
        except ClientGone:
            return
        except RequestError as error:
            await reply.refuse(error)
        except Exception as error:
            logger.error("request %s failed: %s", request_id, frames(error))
            message = (
                "internal error; the service's log has its traceback under the request id "
                f"`{request_id}`"
            )
            await reply.refuse(InternalError(message))
        if route_of(scope) not in _UNCOUNTED_ROUTES:
            self._count(route_of(scope), reply, time.perf_counter() - started)

    def _may_enter(self, route: str, headers: dict[str, str]) -> bool:
        if not self._digests or route in OPEN_ROUTES:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # All keys are compared, each in constant time, so that timing says nothing about any of
        # them.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)

    def _count(self, route: str, reply: _Reply, seconds: float) -> None:
        if self._report is None:
            return
        self._report("requests_total", status=str(reply.status))
        if route == REWARDS_PATH:
            self._report("request_seconds", seconds)
        if reply.code is not None:
            self._report("errors_total", code=reply.code)


class _Reply:
    """The sending half of one request."""

    def __init__(self, send: Send, media: Media, *, request_id: str | None) -> None:
        self._send = send
        self._media = media
        self._request_id = request_id
        self.status: int | None = None
        self.code: str | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._request_id is not None:
                message["headers"] = [
                    *message.get("headers", ()),
                    (REQUEST_ID_HEADER.encode(), self._request_id.encode()),
                ]
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answers with the error body, unless an answer has begun."""
        if self.status is not None:
            return
        self.code = error.code
        body = self._media.dump({"error": error.detail()})
        headers = [
            (b"content-type", self._media.name.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if error.status == Loading.status:
            headers.append(
                (b"retry-after", str(max(1, math.ceil(error.retry_after_s or 0))).encode())
            )
        if error.status == Unauthorized.status:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the caller hangs up first. Raises ClientGone."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        if task.cancel():
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def time_limit_s(scope: Scope, limits: Limits) -> float:
    """Seconds that the work may take: the caller's deadline, or ours, less a margin.

    Ray's proxy reads the same header and would answer 408 at that very moment; the margin lets our
    own answer win.

    Raises:
        InvalidField: The caller's deadline is no number, not positive, or past `max_timeout_s`.
    """
    header = headers_of(scope).get(TIMEOUT_HEADER)
    if header is None:
        seconds = limits.request_timeout_s
    else:
        seconds = _positive(header)
        if seconds > limits.max_timeout_s:
            raise InvalidField(
                f"must be at most {limits.max_timeout_s:g} seconds (`max_timeout_s`), got "
                f"`{shown(header)}`",
                param=TIMEOUT_HEADER,
            )
    return seconds - min(_MOST_MARGIN_S, max(seconds / 10, min(seconds / 2, _ANSWERING_S)))


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise InvalidField(
            f"the header must be a positive number of seconds, got `{shown(text)}`",
            param=TIMEOUT_HEADER,
        )
    return seconds


def refuse_many_items(num_items: int, limits: Limits) -> None:
    """Raises TooManyItems."""
    limit = limits.max_request_items
    if num_items > limit:
        raise TooManyItems(
            f"the request has {num_items} items, the limit is {limit} (`max_request_items`)",
            param="items",
        )


def _request_id(headers: dict[str, str]) -> str:
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
