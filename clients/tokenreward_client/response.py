"""What is wrong with an answer: from what httpx gives to the client's errors.

It knows statuses, headers and the one error body, and not what happens next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from pydantic import ValidationError

from tokenreward.wire import MSGPACK_TYPE, ErrorDetail, read_error
from tokenreward.wire.paths import REQUEST_ID_HEADER
from tokenreward_client.errors import BadReply, ClientError, ConnectionFailed, ServerRefused

OUR_ID = "tokenreward-"
"""What the ids of our requests begin with."""

# Without our error body these come from a proxy: a route not yet mounted, a slow read, a rate
# limit.
_PROXY_STATUSES_TO_RETRY = frozenset({404, 408, 429})
_NEVER_RETRIED = (
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.TooManyRedirects,
    httpx.DecodingError,
)


def error_of(
    answer: httpx.Response | httpx.RequestError, request_id: str | None = None
) -> ClientError | None:
    """What is wrong with an answer.

    Args:
        answer: The response, or the error that came in its place.
        request_id: The id that was sent, if the response must be to this request; None if any
            request's will do.

    Returns:
        The error; None for a 200.
    """
    if isinstance(answer, httpx.DecodingError):
        return BadReply(f"the reply's content encoding is broken: {answer}")
    if isinstance(answer, httpx.RequestError):
        reason = str(answer) or type(answer).__name__
        error = ConnectionFailed(f"no answer from {_origin(answer)}: {reason}")
        error.retryable = not isinstance(answer, _NEVER_RETRIED)
        return error
    # A proxy may put an id of its own making in place of ours, which says nothing. Another id of
    # ours means that two read from one connection, and this is the other's reply.
    ids = answer.headers.get_list(REQUEST_ID_HEADER, split_commas=True)
    our_ids = [each for each in ids if each.startswith(OUR_ID)]
    if request_id is not None and our_ids and request_id not in our_ids:
        return BadReply(f"the reply is to request {our_ids[0]}, sent was {request_id}")
    return None if answer.status_code == 200 else _refusal(answer)


def retry_after_s(
    answer: httpx.Response | httpx.RequestError, wall_clock: Callable[[], float]
) -> float:
    """Seconds that the `Retry-After` header asks for, as a number or as an HTTP date; 0 without one
    that can be read."""
    if isinstance(answer, httpx.RequestError) or "retry-after" not in answer.headers:
        return 0.0
    value = answer.headers["retry-after"]
    try:
        seconds = float(value)
    except ValueError:
        # The server's own date is the start of the wait, where it sends one: two clocks need not
        # agree.
        now = _timestamp(answer.headers.get("date", ""), wall_clock())
        seconds = _timestamp(value, now) - now
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _timestamp(http_date: str, default: float) -> float:
    """Seconds since 1970; the default for what is no date."""
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return default


def _refusal(answer: httpx.Response) -> ServerRefused:
    status, request_id = answer.status_code, answer.headers.get(REQUEST_ID_HEADER)
    detail = _error_detail(answer)
    if detail is None:
        detail = ErrorDetail(
            code="",
            message=f"HTTP {status} without the service's error body: a proxy, or another service",
            retryable=status in _PROXY_STATUSES_TO_RETRY or status >= 500,
        )
    message = detail.message
    if status >= 500 and request_id:
        message += f" (request {request_id})"  # the service's log has the cause under this id
    error = ServerRefused(
        message,
        status=status,
        code=detail.code or None,
        param=detail.param,
        retryable=detail.retryable,
    )
    error.request_id = request_id
    return error


def _error_detail(answer: httpx.Response) -> ErrorDetail | None:
    """The service's error body; None if the body is another's.

    Other software answers `{"error": {...}}` as well. Ours has `retryable` in it.
    """
    try:
        body = _read_body(answer)
    except (ValueError, RecursionError):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("retryable"), bool):
        return None
    try:
        return read_error(error)
    except ValidationError:
        return None


def _read_body(answer: httpx.Response) -> Any:
    """The body as plain objects. Only a client that sends msgpack is answered in it, and such a
    client has the library."""
    if not answer.headers.get("content-type", "").startswith(MSGPACK_TYPE):
        return answer.json()
    from tokenreward.wire.msgpack import unpack

    return unpack(answer.content)


def _origin(error: httpx.RequestError) -> str:
    """Scheme, host and port of the request; without the user part, which may hold a password."""
    try:
        url = error.request.url
    except RuntimeError:  # httpx's way to say that the error came without a request
        return "the server"
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
