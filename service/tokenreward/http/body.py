"""Reading bodies: how many bytes of them a process holds, how many it parses at a time, and on
which thread.

It knows bytes and nothing of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect

from tokenreward.errors import BodyTooLarge, DeadlineExceededError, MalformedBody, Overloaded
from tokenreward.http.scope import Receive, Scope, headers_of

T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY_BYTES = 256 * 1024
MAX_PARSED_BYTES = 64 * 2**20

_RETRY_AFTER_S = 1.0


class BodyBudget:
    """How many bytes of bodies a process holds, in two stages.

    A request takes its share of the memory before the first byte of its body is read, and gives it
    back when the body is dropped. A share that does not fit is refused at once and not waited for:
    a caller who sends slowly takes its own share from others and nothing else.

    Bodies that are there are parsed in turn, first come first served, because the objects of a
    parsed body take many times its size. A body larger than what may be parsed at a time is parsed
    alone.

    Args:
        num_bytes: Bytes of bodies that may be held at a time.
        max_body_bytes: The largest body. It is the share of a request that declares no length.
        max_parsed_bytes: Bytes of bodies that may be parsed at a time.
    """

    def __init__(
        self,
        num_bytes: int,
        *,
        max_body_bytes: int,
        max_parsed_bytes: int = MAX_PARSED_BYTES,
    ) -> None:
        self._num_bytes = num_bytes
        self._max_body_bytes = max_body_bytes
        self._max_parsed_bytes = self._free_to_parse = max_parsed_bytes
        self._turn = asyncio.Lock()  # which is fair
        self._parsed = asyncio.Event()
        self.num_held = 0

    @contextlib.asynccontextmanager
    async def body(
        self, scope: Scope, receive: Receive, *, within_s: float
    ) -> AsyncIterator[bytes]:
        """Reads a body and holds its share until the block ends.

        Args:
            scope: The request's.
            receive: The request's.
            within_s: Seconds in which the whole body must arrive.

        Raises:
            BodyTooLarge: The body has more bytes than any may have, as declared or as counted.
            Overloaded: There is no room for it now.
            DeadlineExceededError: It did not arrive in time.
            ClientDisconnect: The caller hung up.
        """
        share = self._declared_bytes(scope)
        if self.num_held + share > self._num_bytes:
            raise Overloaded(
                f"{self.num_held} bytes of other requests' bodies are held, the limit is "
                f"{self._num_bytes} (`max_body_memory_bytes`)",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.num_held += share
        try:
            try:
                async with asyncio.timeout(within_s):
                    body = await self._read(receive, share)
            except TimeoutError:
                raise DeadlineExceededError(
                    "the deadline passed before the body was read"
                ) from None
            self.num_held -= share - len(body)
            share = len(body)
            yield body
        finally:
            self.num_held -= share

    @contextlib.asynccontextmanager
    async def parsing(self, num_bytes: int, *, within_s: float) -> AsyncIterator[None]:
        """Waits until a body of so many bytes may be parsed. Raises DeadlineExceededError."""
        num_bytes = min(num_bytes, self._max_parsed_bytes)
        try:
            async with asyncio.timeout(within_s), self._turn:
                while self._free_to_parse < num_bytes:
                    self._parsed.clear()
                    await self._parsed.wait()
                self._free_to_parse -= num_bytes
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed before the body was parsed") from None
        try:
            yield
        finally:
            self._free_to_parse += num_bytes
            self._parsed.set()

    def _declared_bytes(self, scope: Scope) -> int:
        """The bytes that a body may have: as many as it declares, or as any may. Raises
        BodyTooLarge."""
        # More digits than these are too many bytes in any case, and `int` refuses thousands.
        declared = headers_of(scope).get("content-length", "")[:20]
        if not declared.isdecimal():
            return self._max_body_bytes
        if int(declared) > self._max_body_bytes:
            raise self._too_large(f"{declared} bytes")
        return int(declared)

    async def _read(self, receive: Receive, max_bytes: int) -> bytes:
        chunks: list[bytes] = []
        num_bytes, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            num_bytes += len(chunk)
            if num_bytes > self._max_body_bytes:
                raise self._too_large(f"{num_bytes} bytes or more")
            if num_bytes > max_bytes:
                raise MalformedBody(f"the body is longer than the {max_bytes} bytes it declares")
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _too_large(self, size: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body has {size}, the limit is {self._max_body_bytes} (`max_body_bytes`)"
        )


async def for_size(num_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, on a thread if it handles so many bytes that others would wait for it.

    Others wait all the same while one call keeps Python's lock. Parsing JSON keeps it, except where
    it calls validators of ours, as it does for each item: a body of 8 MB kept others waiting 3 ms
    at a time if it had thousands of items, and 60 ms if it had one.
    """
    if num_bytes < LARGE_BODY_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
