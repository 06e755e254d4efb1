"""What ASGI hands an application: its types, the parts of a request's scope that we read, and the
caller who may hang up.

It knows no routes of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from tokenreward.errors import InvalidField, UnknownRoute, quotable
from tokenreward.wire.paths import CALLER_HEADER, REWARDS_PATH, SCORERS_PATH, TRACE_HEADERS

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

T = TypeVar("T")

# Version, trace, parent, flags. Versions after 00 may add fields.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_MAX_CALLER = 128  # characters
# HTTP servers in front of us have smaller limits. Ray's proxy and uvicorn have none, and half a
# million headers, or one of 16 MB, kept all other requests waiting for seconds.
_MAX_HEAD_BYTES = 2**16
_HEADER_BYTES = 32  # for a header's objects, as HTTP/2 counts them


def unknown_route(scope: Scope) -> UnknownRoute:
    """What the router refuses: a path that we do not have, or another method."""
    route = f"{quotable(scope['method'])} {quotable(scope['path'])}"
    return UnknownRoute(
        f"no such route: {route}; rewards are asked with POST {REWARDS_PATH}, and GET "
        f"{SCORERS_PATH} says what is served"
    )


def headers_of(scope: Scope) -> dict[str, str]:
    """Header values by lower-case name, read once a request."""
    state: dict[str, Any] = scope.setdefault("state", {})
    if "headers" not in state:
        state["headers"] = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
    headers: dict[str, str] = state["headers"]
    return headers


def head_error(scope: Scope) -> InvalidField | None:
    """The error of a request whose headers have too many bytes, with some more for each header.
    None if they are small enough. Headers that are too large are dropped, so that nothing reads
    them."""
    num_bytes = sum(_HEADER_BYTES + len(name) + len(value) for name, value in scope["headers"])
    if num_bytes <= _MAX_HEAD_BYTES:
        return None
    scope["headers"] = []
    return InvalidField(
        f"they have {num_bytes} bytes, some for each, the limit is {_MAX_HEAD_BYTES}",
        param="headers",
    )


def caller_of(scope: Scope) -> str:
    """Who asks, so that callers can take turns: the API key, else the connection.

    The gateway says whose connection it asks for. A key is the digest that the guard has left. A
    service that wants none does not look at it: clients of other servers send all the same one.
    """
    headers = headers_of(scope)
    key: str | None = scope["state"].get("key")
    if key is not None:
        return key
    connection = scope.get("client") or ()
    caller = headers.get(CALLER_HEADER) or ":".join(str(part) for part in connection)
    if len(caller) > _MAX_CALLER or not is_plain(caller):
        return hashlib.sha256(caller.encode()).hexdigest()
    return caller


def is_plain(value: str) -> bool:
    """Whether a header's value is printable ASCII, which may be sent on as it is."""
    return value.isascii() and value.isprintable()


def trace_of(scope: Scope) -> str | None:
    """The id of the distributed trace that the caller's `traceparent` names, in 32 hex digits; None
    without a valid one (https://www.w3.org/TR/trace-context/)."""
    match = _TRACEPARENT.fullmatch(headers_of(scope).get(TRACE_HEADERS[0], ""))
    if match is None or match[1] == "ff" or not int(match[2], 16) or not int(match[3], 16):
        return None
    return match[2]


def route_of(scope: Scope) -> str:
    """The path below the place where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root) else path


class IncomingRequest:
    """The caller of one request: the body that it sends, and whether it hangs up.

    It may be watched before its body is read: then at most one piece of the body is kept here.
    While more of the body is to come, nobody can say whether the caller is there without reading
    that.

    Args:
        receive: The request's.
        name: Who asks (see `caller_of`).
    """

    def __init__(self, receive: Receive, name: str = "") -> None:
        self.name = name
        self._receive = receive
        self._piece: Message | None = None

    async def receive(self) -> Message:
        """The next message of the request."""
        if self._piece is None:
            return await self._next()
        piece, self._piece = self._piece, None
        return piece

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled if the caller hangs up first.

        Raises:
            ClientDisconnect: The caller hung up.
        """
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(self._hang_up())
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return task.result()
        finally:
            watch.cancel()
            if task.cancel():
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _hang_up(self) -> None:
        if self._piece is None:
            message = await self._next()
            if message["type"] == "http.disconnect":
                return
            self._piece = message
        if self._piece.get("more_body", False):
            await asyncio.Event().wait()
        while (await self._next())["type"] != "http.disconnect":
            pass

    async def _next(self) -> Message:
        """The server's next message. A server that fails here has lost the caller: where Ray's
        proxy drops a request whose caller hung up, or dies, this raises an error of Ray's."""
        try:
            return await self._receive()
        except Exception:
            return {"type": "http.disconnect"}
