"""What comes back from a deployment: an answer of our own code, or a proxy's instead of one.

It knows statuses, content types and error bodies, and nothing of what a deployment was asked.
"""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import Response

from tokenreward.errors import DeadlineExceededError, InternalError, Loading, RequestError
from tokenreward.wire import read_error
from tokenreward.wire.media import JSON, MSGPACK
from tokenreward.wire.paths import PROTOCOL_HEADER, REQUEST_ID_HEADER

_FORWARDED_HEADERS = ("content-type", "retry-after")
# Headers of one connection, or that every server of ours adds by itself.
_OWN_HEADERS = frozenset(
    {"connection", "content-encoding", "content-length", "date", "keep-alive", "server"}
    | {"transfer-encoding", REQUEST_ID_HEADER}
)


def read_body(answer: Response) -> Any:
    """The plain objects of a deployment's answer. Raises ValueError."""
    is_msgpack = answer.headers["content-type"].startswith(MSGPACK.name)
    return (MSGPACK if is_msgpack else JSON).load(bytes(answer.body))


class UpstreamRefusal(RequestError):
    """A deployment's refusal, with the status and the code that it has there.

    Raises:
        ValueError, TypeError, KeyError: The answer has no error body.
    """

    def __init__(self, answer: Response) -> None:
        detail = read_error(read_body(answer)["error"])
        seconds = answer.headers.get("retry-after", "")
        super().__init__(
            detail.message,
            param=detail.param,
            retry_after_s=float(seconds) if seconds.isdecimal() else None,
        )
        # Of other errors these are the class's; here they are each refusal's own.
        self.__dict__.update(
            status=answer.status_code, code=detail.code, retryable=detail.retryable
        )


def own_answer(response: httpx.Response, body: bytes) -> Response | None:
    """The answer, if our own code made it. Proxies answer in plain text, or in JSON of their
    own."""
    if PROTOCOL_HEADER in response.headers:  # its form is not ours to judge
        headers = {name: response.headers[name] for name in response.headers.keys() - _OWN_HEADERS}
        return Response(body, response.status_code, headers)
    if not response.headers.get("content-type", "").startswith((JSON.name, MSGPACK.name)):
        return None
    headers = {
        name: response.headers[name] for name in _FORWARDED_HEADERS if name in response.headers
    }
    answer = Response(body, response.status_code, headers)
    if answer.status_code == 200:
        return answer
    try:
        UpstreamRefusal(answer)
    except (ValueError, TypeError, KeyError):
        return None
    return answer


def foreign_failure(deployment: str, status: int) -> RequestError:
    """The failure that an answer stands for which our code did not make, such as a proxy's."""
    if status == 408:
        return DeadlineExceededError(f"`{deployment}` did not answer before the deadline")
    if status in (404, 503):
        return Loading(f"`{deployment}` has no replica that answers", retry_after_s=2)
    return InternalError(f"`{deployment}` failed while answering (status {status})")
