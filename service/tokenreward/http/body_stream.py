"""The body of one request as it comes from its connection: how long it may be, and how slowly it
may come.

It knows bytes and seconds, and nothing of what the bytes say or of the bodies beside it.
"""

from __future__ import annotations

import asyncio
import re

from starlette.requests import ClientDisconnect

from tokenreward.errors import BodyTimeout, BodyTooLarge, DeadlineExceededError, MalformedBody
from tokenreward.http.scope import Message, Receive, Scope, headers_of

# A body holds its share of the memory while it arrives. It is given up when nothing of it arrives
# for so long, or when it comes more slowly than this, as no client on purpose does. Ray's proxy
# passes bodies on, and has stood still for 10 s just after its start on a machine of two cores.
_MAX_PAUSE_S = 30.0
_GRACE_S = 30.0
_MIN_BYTES_PER_S = 2**15
# Bodies are never unpacked: a small one could hold gigabytes. Other encodings that clients write
# there, such as `utf-8`, change no byte.
_COMPRESSIONS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
_SETTING = "(`request_timeout_s`)"


def declared_bytes(scope: Scope, max_body_bytes: int) -> int:
    """The bytes that a body may have: as many as it declares, or as any may. Raises BodyTooLarge,
    and MalformedBody if it is compressed."""
    encodings = headers_of(scope).get("content-encoding", "").lower()
    for encoding in re.split(r"[\s,]+", encodings):
        if encoding in _COMPRESSIONS:
            raise MalformedBody(f"a body in `{encoding}` is not unpacked: send it as it is")
    # More digits than these are too many bytes in any case, and `int` refuses thousands.
    declared = headers_of(scope).get("content-length", "")[:20]
    if not declared.isdecimal():
        return max_body_bytes
    if int(declared) > max_body_bytes:
        raise _too_large(f"{declared} bytes", max_body_bytes)
    return int(declared)


async def read_body(
    receive: Receive,
    num_declared: int,
    *,
    max_body_bytes: int,
    max_receive_s: float,
    within_s: float,
) -> bytes:
    """All of a body.

    Args:
        receive: The request's.
        num_declared: What `declared_bytes` returned.
        max_body_bytes: The largest body.
        max_receive_s: Seconds in which it must arrive, whatever its caller's deadline.
        within_s: Seconds to the caller's deadline.

    Raises:
        BodyTooLarge: It has more bytes than any may have.
        MalformedBody: It has more than it declares.
        BodyTimeout: It came too slowly, or stopped arriving.
        DeadlineExceededError: It did not arrive before the caller's deadline.
        ClientDisconnect: The caller hung up.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    chunks: list[bytes] = []
    num_bytes, more = 0, True
    while more:
        slow_s = _GRACE_S + num_bytes / _MIN_BYTES_PER_S
        message = await _next_message(
            receive,
            (began + within_s, ""),
            (began + max_receive_s, f"did not arrive within {max_receive_s:g} s {_SETTING}"),
            (loop.time() + _MAX_PAUSE_S, f"stopped arriving for {_MAX_PAUSE_S:g} s"),
            (began + slow_s, f"comes at less than {_MIN_BYTES_PER_S} bytes a second"),
        )
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_body_bytes:
            raise _too_large(f"{num_bytes} bytes or more", max_body_bytes)
        if num_bytes > num_declared:
            raise MalformedBody(f"the body is longer than the {num_declared} bytes it declares")
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _next_message(receive: Receive, *ends: tuple[float, str]) -> Message:
    """The next message of a request.

    Args:
        receive: The request's.
        ends: Until when it may come, by the event loop's clock, each with what is wrong with the
            body if it does not. The empty text is of the caller's deadline.

    Raises:
        BodyTimeout, DeadlineExceededError: It did not come.
    """
    ends_at, problem = min(ends)
    try:
        async with asyncio.timeout_at(ends_at):
            return await receive()
    except TimeoutError:
        if problem:
            raise BodyTimeout(f"the body {problem}") from None
        raise DeadlineExceededError("the deadline passed before the body was read") from None


def _too_large(size: str, max_body_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has {size}, the limit is {max_body_bytes} (`max_body_bytes`)")
