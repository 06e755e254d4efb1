"""What stands in front of every HTTP application of ours: request id, API keys, the error body, the
count of requests; and the limits of requests.

Plain ASGI, so that a replica and the gateway share it. It knows no scorers and never reads a
payload. What it logs of a failure is the exception's type and where it was raised: messages may
quote what a caller sent.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from tokenreward.errors import (
    InternalError,
    InvalidField,
    Loading,
    RequestError,
    TooManyItems,
    Unauthorized,
    frames,
    quotable,
)
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols.native import Native
from tokenreward.http.scope import (
    App,
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    headers_of,
    route_of,
)
from tokenreward.wire.paths import (
    HEALTH_PATH,
    METRICS_PATH,
    READY_PATH,
    REQUEST_ID_HEADER,
    TIMEOUT_HEADER,
)

Report = Callable[..., None]

OPEN_ROUTES = frozenset({HEALTH_PATH, READY_PATH})

_UNCOUNTED_ROUTES = OPEN_ROUTES | {METRICS_PATH}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_ANSWERING_S = 0.03  # between two Ray processes and the caller; measured at 10 to 15 ms
_MAX_MARGIN_S = 0.25

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every request.

    Attributes:
        max_body_bytes: The largest body.
        max_request_items: The most items in one request.
        request_timeout_s: The deadline of a request that names none.
        max_timeout_s: The latest deadline that a request may name.
        max_body_memory_bytes: Bytes of bodies that the process holds at a time.
        api_keys: The keys that open the routes; none, and everybody may enter.
        echo_request_id: Whether replies carry the request's id. Ray's proxy adds it by itself.
    """

    max_body_bytes: int
    max_request_items: int
    request_timeout_s: float
    max_timeout_s: float = 3600.0
    max_body_memory_bytes: int = 256 * 2**20
    api_keys: tuple[SecretStr, ...] = ()
    echo_request_id: bool = True

    def time_limit_s(self, headers: Mapping[str, str]) -> float:
        """Seconds that the work may take: the caller's deadline, or ours, less a margin.

        Ray's proxy reads the same header and would answer 408 at that very moment. The margin lets
        our own answer win.

        Raises:
            InvalidField: The caller's deadline is no number, not positive, or past
                `max_timeout_s`.
        """
        header = headers.get(TIMEOUT_HEADER)
        seconds = self.request_timeout_s
        if header is not None:
            seconds = _positive(header)
            if seconds > self.max_timeout_s:
                raise InvalidField(
                    f"must be at most {self.max_timeout_s:g} seconds (`max_timeout_s`), got "
                    f"`{quotable(header)}`",
                    param=TIMEOUT_HEADER,
                )
        return seconds - min(_MAX_MARGIN_S, max(seconds / 10, min(seconds / 2, _ANSWERING_S)))

    def refuse_many_items(self, num_items: int) -> None:
        """Raises TooManyItems."""
        limit = self.max_request_items
        if num_items > limit:
            raise TooManyItems(
                f"the request has {num_items} items, the limit is {limit} (`max_request_items`)",
                param="items",
            )


class Guard:
    """ASGI middleware: refuses callers without a key, names each request, and turns every failure
    into an error body.

    Args:
        app: The application behind it.
        limits: The limits of requests, with the API keys.
        protocols: By route, the protocol in which its failures are said. All other routes have our
            own error body.
        report: Told the metrics.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        protocols: Mapping[str, type[Protocol]],
        report: Report,
    ) -> None:
        self._app = app
        self._digests = [_digest(key.get_secret_value()) for key in limits.api_keys]
        self._echo_request_id = limits.echo_request_id
        self._protocols = protocols
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, route = headers_of(scope), route_of(scope)
        request_id = headers.get(REQUEST_ID_HEADER, "")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = uuid.uuid4().hex
        scope["state"]["request_id"] = request_id
        protocol = self._protocols.get(route, Native)(headers)
        answer = _Answering(send, protocol, request_id if self._echo_request_id else None)
        started = time.perf_counter()
        try:
            if not self._may_enter(route, headers):
                raise Unauthorized("a valid API key is required: `Authorization: Bearer KEY`")
            await self._app(scope, receive, answer.send)
        except ClientGone:
            return
        except RequestError as error:
            await answer.refuse(error)
        except Exception as error:
            logger.error("request %s failed: %s", request_id, frames(error))
            message = (
                "internal error; the service's log has its traceback under the request id "
                f"`{request_id}`"
            )
            await answer.refuse(InternalError(message))
        if route not in _UNCOUNTED_ROUTES:
            self._count(route, answer, time.perf_counter() - started)

    def _may_enter(self, route: str, headers: Mapping[str, str]) -> bool:
        if not self._digests or route in OPEN_ROUTES:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        # All keys are compared, each in constant time, so that timing says nothing about any of
        # them.
        matches = [hmac.compare_digest(digest, valid) for valid in self._digests]
        return scheme.lower() == "bearer" and any(matches)

    def _count(self, route: str, answer: _Answering, seconds: float) -> None:
        self._report("requests_total", status=str(answer.status))
        if route in self._protocols:
            self._report("request_seconds", seconds)
        if answer.code is not None:
            self._report("errors_total", code=answer.code)


class _Answering:
    """The sending half of one request. `status` and `code` are of the answer that has begun."""

    def __init__(self, send: Send, protocol: Protocol, request_id: str | None) -> None:
        self._send = send
        self._protocol = protocol
        self._request_id = request_id
        self.status: int | None = None
        self.code: str | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._request_id is not None:
                header = (REQUEST_ID_HEADER.encode(), self._request_id.encode())
                message["headers"] = [*message.get("headers", ()), header]
        await self._send(message)

    async def refuse(self, error: RequestError) -> None:
        """Answers with the error body, unless an answer has begun."""
        if self.status is not None:
            return
        self.code = error.code
        status, body = self._protocol.write_error(error)
        headers = [
            (b"content-type", self._protocol.writes.name.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if status == Loading.status:
            seconds = max(1, math.ceil(error.retry_after_s or 0))
            headers.append((b"retry-after", str(seconds).encode()))
        if status == Unauthorized.status:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise InvalidField(
            f"the header must be a positive number of seconds, got `{quotable(text)}`",
            param=TIMEOUT_HEADER,
        )
    return seconds


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
