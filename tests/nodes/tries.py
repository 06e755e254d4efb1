"""What a client sends, request by request, and what comes back: it tells where the time went when a
call takes long.

It knows HTTP, and neither callers nor nodes.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

_LONG_S = 1.0  # a request that takes longer is told even if it succeeds


@dataclass(frozen=True)
class Try:
    """One request.

    Attributes:
        began: When it was sent, by time.monotonic.
        seconds: Until all of the answer was there, or the failure.
        place: The address and the path.
        outcome: The status and the error codes in the body, or the name of the failure.
    """

    began: float
    seconds: float
    place: str
    outcome: str


class WatchedConnections(httpx.AsyncHTTPTransport):
    """Connections that note every request which they send.

    Args:
        tries: Where requests are noted.
        options: Of the connections.
    """

    def __init__(self, tries: list[Try], **options: Any) -> None:
        super().__init__(**options)
        self._tries = tries

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        place = f"{request.url.host}{request.url.path}"
        note = partial(self._note, time.monotonic(), place)
        try:
            response = await super().handle_async_request(request)
        except httpx.TransportError as error:
            note(type(error).__name__)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = WatchedBody(response.stream, str(response.status_code), note)
        return response

    def _note(self, began: float, place: str, outcome: str) -> None:
        self._tries.append(Try(began, time.monotonic() - began, place, outcome))


class WatchedBody(httpx.AsyncByteStream):
    """The body of an answer, whose error codes are noted when all of it was read.

    Args:
        stream: The body.
        status: Of the answer.
        note: Called with the status and the codes, or with the failure.
    """

    def __init__(
        self, stream: httpx.AsyncByteStream, status: str, note: Callable[[str], None]
    ) -> None:
        self._stream = stream
        self._status = status
        self._note = note

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = b""
        try:
            async for chunk in self._stream:
                content += chunk
                yield chunk
        except httpx.TransportError as error:
            self._note(f"{self._status} {type(error).__name__}")
            raise
        codes = sorted(set(re.findall(rb'"code": ?"(\w+)"', content)))
        self._note(" ".join([self._status, *(code.decode() for code in codes)]))

    async def aclose(self) -> None:
        await self._stream.aclose()


def slow_or_failed(tries: Sequence[Try], since: float) -> list[str]:
    """A line for each request that ended after `since` and failed or took long, in the order in
    which they were sent."""
    lines = []
    for each in sorted(tries, key=lambda one: one.began):
        is_good = each.outcome == "200" and each.seconds < _LONG_S
        if is_good or each.began + each.seconds < since:
            continue
        after_s = each.began - since
        lines.append(f"{after_s:+.1f} s {each.place}: {each.outcome} after {each.seconds:.1f} s")
    return lines
