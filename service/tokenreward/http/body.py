"""Reading bodies: how large one may be, how many bytes are parsed at a time, and on which thread.

It knows bytes and nothing of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from tokenreward.errors import BodyTooLarge, DeadlineExceeded
from tokenreward.http.scope import ClientGone, Receive, Scope, headers_of

T = TypeVar("T")
P = ParamSpec("P")

IN_A_THREAD_BYTES = 256 * 1024
ROOM_BYTES = 64 * 2**20


async def read_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """The whole body. Raises BodyTooLarge (declared or counted), ClientGone."""
    declared = headers_of(scope).get("content-length", "")[:20]
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(
            f"the body has {declared} bytes, the limit is {limit} (`max_body_bytes`)"
        )
    chunks: list[bytes] = []
    num_bytes, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > limit:
            raise BodyTooLarge(
                f"the body has {num_bytes} bytes or more, the limit is {limit} (`max_body_bytes`)"
            )
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


class Room:
    """How many bytes of bodies a process parses at a time: parsed, a body takes many times its
    size.

    Who finds no room waits, first come first served; a body larger than the room goes alone. Only
    bodies that are there take any, or callers who send slowly would hold up all others.
    """

    def __init__(self, num_bytes: int | None = None) -> None:
        self._most = self._free = ROOM_BYTES if num_bytes is None else num_bytes
        self._turn = asyncio.Lock()  # which is fair
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def body(
        self, scope: Scope, receive: Receive, *, limit: int, within_s: float
    ) -> AsyncIterator[bytes]:
        """The whole body, which has its room until the block ends.

        Raises BodyTooLarge, ClientGone, DeadlineExceeded: `within_s` went by before it was there
        and had room.
        """
        try:
            async with asyncio.timeout(within_s):
                body = await read_body(scope, receive, limit=limit)
                taken = await self._take(min(len(body), self._most))
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the request was read") from None
        try:
            yield body
        finally:
            self._free += taken
            self._freed.set()

    async def _take(self, num_bytes: int) -> int:
        async with self._turn:
            while self._free < num_bytes:
                self._freed.clear()
                await self._freed.wait()
            self._free -= num_bytes
        return num_bytes


async def for_size(num_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, which goes to a thread if it handles so many bytes that others would
    wait for it.

    They wait all the same while one call keeps Python's lock. Parsing JSON does, but where it calls
    validators of ours, as it does for each item: a body of 8 MB kept others waiting 3 ms at a time
    if it had thousands of items, and 60 ms if it had one.
    """
    if num_bytes < IN_A_THREAD_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
