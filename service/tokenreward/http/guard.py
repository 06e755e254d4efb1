"""What stands in front of every HTTP application of ours: request id, API keys, the error body, the
count of requests.

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
from collections.abc import Callable, Iterable, Mapping

from fastapi import Response
from pydantic import SecretStr
from starlette.requests import ClientDisconnect

from tokenreward.errors import (
    BodyTimeout,
    InternalError,
    Loading,
    RequestError,
    Unauthorized,
    frames,
    quotable,
)
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols.native import Native
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    head_error,
    headers_of,
    route_of,
    trace_of,
    unknown_route,
)
from tokenreward.wire.paths import (
    DOCS_PATH,
    HEALTH_PATH,
    METRICS_PATH,
    OPENAPI_PATH,
    READY_PATH,
    REQUEST_ID_HEADER,
    is_weights_path,
)

Report = Callable[..., None]

# What they answer says nothing of what is served, and a browser has no key to send.
OPEN_ROUTES = frozenset({HEALTH_PATH, READY_PATH, OPENAPI_PATH, DOCS_PATH})

_UNCOUNTED_ROUTES = OPEN_ROUTES | {METRICS_PATH}
_GONE = 499  # the status that the metrics have for a caller who hung up before the answer
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

logger = logging.getLogger(__name__)


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
        self._digests = _digests(limits.api_keys)
        self._admin_digests = _digests(limits.admin_keys)
        self._echo_request_id = limits.echo_request_id
        self._protocols = protocols
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        error: RequestError | None = head_error(scope)
        headers, route = headers_of(scope), route_of(scope)
        request_id = headers.get(REQUEST_ID_HEADER, "")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = uuid.uuid4().hex
        scope["state"]["request_id"] = request_id
        status: int | None = None  # of the answer, once it has begun

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._echo_request_id:
                    header = (REQUEST_ID_HEADER.encode(), request_id.encode())
                    message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            error = error or await self._error_of(scope, receive, answer)
        except ClientDisconnect:  # whatever was under way for it is cancelled
            status = _GONE
        if error is not None and status is None:  # nobody can take back an answer that has begun
            self._report("errors_total", code=error.code)
            protocol = self._protocols.get(route, Native)(headers)
            await refusal(error, protocol)(scope, receive, answer)
        _log_trace(scope, status, seconds=time.perf_counter() - began)
        if route not in _UNCOUNTED_ROUTES:
            self._report("requests_total", status=str(status))
            if route in self._protocols:
                self._report("request_seconds", time.perf_counter() - began)

    async def _error_of(self, scope: Scope, receive: Receive, send: Send) -> RequestError | None:
        """Lets the application answer. Returns why it did not, as one of our errors."""
        try:
            self._check_key(scope)
            # The router takes such a path for the one without its end, whose key was not asked for.
            if scope["path"].endswith("\n"):
                raise unknown_route(scope)
            await self._app(scope, receive, send)
        except ClientDisconnect:
            raise
        except RequestError as error:
            return error
        except Exception as error:
            request_id = scope["state"]["request_id"]
            trace = trace_of(scope)
            logger.error(
                "request %s failed: %s", request_id, frames(error), extra={"trace_id": trace}
            )
            return InternalError(
                "internal error; the service's log has its traceback under the request id "
                f"`{request_id}`"
            )
        return None

    def _check_key(self, scope: Scope) -> None:
        """Raises Unauthorized if the route wants a key which the caller has not sent. The digest of
        a key that is wanted says who the caller is."""
        route = route_of(scope)
        digests, kind = self._digests, "API"
        if self._admin_digests and is_weights_path(route):
            digests, kind = self._admin_digests, "admin"
        if not digests or route in OPEN_ROUTES:
            return
        scheme, _, key = headers_of(scope).get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        # All keys are compared, each in constant time, so that timing says nothing about any of
        # them.
        matches = [hmac.compare_digest(digest, valid) for valid in digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise Unauthorized(f"a valid {kind} key is required: `Authorization: Bearer KEY`")
        scope["state"]["key"] = digest.hex()


def refusal(error: RequestError, protocol: Protocol) -> Response:
    """The answer that says an error, in the words of a protocol."""
    status, body = protocol.write_error(error)
    headers = protocol.marks
    if status == Loading.status:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 0)))
    if status == BodyTimeout.status:
        headers["connection"] = "close"  # the rest of the body is not read
    if status == Unauthorized.status:
        headers["www-authenticate"] = "Bearer"
    return Response(body, status, headers, media_type=protocol.writes.name)


def _log_trace(scope: Scope, status: int | None, *, seconds: float) -> None:
    """Logs a request that belongs to a distributed trace, so that the trace leads here. In JSON the
    trace, the status and the time are fields of their own."""
    trace = trace_of(scope)
    if trace is None:
        return
    request_id = scope["state"]["request_id"]
    where = f"{quotable(scope['method'])} {quotable(scope['path'])}"
    logger.info(
        "trace %s: request %s: %s %s in %.1f ms",
        *(trace, request_id, where, status, 1000 * seconds),
        extra={"trace_id": trace, "status": status, "seconds": round(seconds, 6)},
    )


def _digests(keys: Iterable[SecretStr]) -> list[bytes]:
    return [_digest(key.get_secret_value()) for key in keys]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
