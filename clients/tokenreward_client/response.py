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
    """What is wrong with an answer, or None for a 200. `request_id`: as it was sent, if it must be
    that one's."""
    if isinstance(answer, httpx.DecodingError):
        return BadReply(f"the reply's content encoding is broken: {answer}")
    if isinstance(answer, httpx.RequestError):
        error = ConnectionFailed(
            f"no answer from {_origin(answer)}: {str(answer) or type(answer).__name__}"
        )
        error.retryable = not isinstance(answer, _NEVER_RETRIED)
        return error
    if request_id is not None and (theirs := _of_another(answer, request_id)) is not None:
        return BadReply(f"the reply is to request {theirs}, sent was {request_id}")
    if answer.status_code == 200:
        return None
    return _refusal(answer)


def _of_another(answer: httpx.Response, request_id: str) -> str | None:
    """The id of the request of ours that this answers, if it is not this one: two read from one
    connection."""
    # A proxy may put ids of its own making in place of ours: those say nothing.
    ids = [
        each
        for each in answer.headers.get_list(REQUEST_ID_HEADER, split_commas=True)
        if each.startswith(OUR_ID)
    ]
    return ids[0] if ids and request_id not in ids else None


def retry_after_s(
    answer: httpx.Response | httpx.RequestError, wall_clock: Callable[[], float]
) -> float:
    """Seconds that the `Retry-After` header asks for (a number or an HTTP date); 0 without one that
    can be read."""
    if isinstance(answer, httpx.RequestError) or "retry-after" not in answer.headers:
        return 0.0
    value = answer.headers["retry-after"]
    try:
        seconds = float(value)
    except ValueError:
        seconds = _timestamp(value, wall_clock()) - _timestamp(
            answer.headers.get("date", ""), wall_clock()
        )
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _timestamp(http_date: str, default: float) -> float:
    """The server's own `Date` is the start of the wait where it has one: two clocks need not
    agree."""
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return default


def _refusal(answer: httpx.Response) -> ServerRefused:
    status, request_id = answer.status_code, answer.headers.get(REQUEST_ID_HEADER)
    # Who is at fault for a 5xx finds it in a log.
    traced = f" (request {request_id})" if status >= 500 and request_id else ""
    detail = _detail(answer)
    if detail is None:
        retryable = status in _PROXY_STATUSES_TO_RETRY or status >= 500
        message = (
            f"HTTP {status} without the service's error body: a proxy, or another service{traced}"
        )
        error = ServerRefused(message, status=status, retryable=retryable)
    else:
        message, retryable = f"{detail.message}{traced}", detail.retryable
        error = ServerRefused(
            message, status=status, code=detail.code, param=detail.param, retryable=retryable
        )
    error.request_id = request_id
    return error


def _detail(answer: httpx.Response) -> ErrorDetail | None:
    """The service's error body. Other software answers `{"error": {...}}` too; `retryable` tells
    ours."""
    try:
        body = _content(answer)
    except (ValueError, RecursionError):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("retryable"), bool):
        return None
    try:
        return read_error(error)
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
