"""Reading bodies: how many bytes of them a process holds, how long they may take to arrive, how
many it parses at a time, and on which thread.

It knows bytes and nothing of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect

from tokenreward.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceededError,
    MalformedBody,
    Overloaded,
)
from tokenreward.http.patience import when_possible
from tokenreward.http.scope import IncomingRequest, Receive, Scope, headers_of

T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY_BYTES = 256 * 1024
# Python's lock lets one body be parsed at a time in any case. More of them would take memory, and
# the lock from all others for longer.
MAX_PARSED_BYTES = 16 * 2**20
_SMALL_BODIES = 64  # of which one, or so many, are parsed at a time: below LARGE_BODY_BYTES

_RETRY_AFTER_S = 1.0
# A body holds its share of the memory while it arrives. It is given up when nothing of it arrives
# for so long, or when it comes more slowly than this, as no client on purpose does. Ray's proxy
# passes bodies on, and has stood still for 10 s just after its start on a machine of two cores.
_MAX_PAUSE_S = 30.0
_GRACE_S = 30.0
_MIN_BYTES_PER_S = 2**15
# Large bodies together leave this much of the memory to others, so that a few callers who send
# large bodies slowly do not keep out everybody.
_SMALL_BODIES_SHARE = 0.25


class BodyBudget:
    """How many bytes of bodies a process holds, in two stages.

    A request takes its share of the memory before the first byte of its body is read, and gives it
    back when the body is dropped. A share that does not fit is refused at once and not waited for:
    a caller who sends slowly takes its own share from others and nothing else.

    Large bodies that are there are parsed in turn, first come first served, because the objects of
    a parsed body take many times its size. A body larger than what may be parsed at a time is
    parsed alone.

    What a process keeps of a request besides its body counts as well (`extras`).

    Args:
        num_bytes: Bytes that may be held at a time.
        max_body_bytes: The largest body. It is the share of a request that declares no length.
        max_receive_s: Seconds in which a body must arrive, whatever its caller's deadline. Others
            do without its share all that time.
        max_parsed_bytes: Bytes of bodies that may be parsed at a time.
    """

    def __init__(
        self,
        num_bytes: int,
        *,
        max_body_bytes: int,
        max_receive_s: float = math.inf,
        max_parsed_bytes: int = MAX_PARSED_BYTES,
    ) -> None:
        self._num_bytes = num_bytes
        self._max_body_bytes = max_body_bytes
        self._max_receive_s = max_receive_s
        self._max_parsed_bytes = self._free_to_parse = max_parsed_bytes
        self._turn = asyncio.Lock()  # which is fair
        self._parsed = asyncio.Event()
        self._num_extra = self._num_large = 0
        self.num_held = 0

    @contextlib.asynccontextmanager
    async def body(
        self,
        scope: Scope,
        caller: IncomingRequest,
        *,
        within_s: float,
        give_up_at: float = -math.inf,
    ) -> AsyncIterator[bytes]:
        """Reads a body and holds its share until the block ends.

        Args:
            scope: The request's.
            caller: Who sends it.
            within_s: Seconds to the caller's deadline.
            give_up_at: Until when, by time.monotonic, the body may stay with the caller if there
                is no room.

        Raises:
            BodyTooLarge: The body has more bytes than any may have, as declared or as counted.
            Overloaded: There is no room for it now.
            BodyTimeout: It came too slowly, or stopped arriving.
            DeadlineExceededError: It did not arrive before the caller's deadline.
            ClientDisconnect: The caller hung up.
        """
        share = 0  # what is taken
        began = time.monotonic()

        def take() -> None:
            nonlocal share
            declared = self._declared_bytes(scope)
            self._take(declared)
            share = declared

        try:  # the caller may hang up just after the share was taken
            await when_possible(take, give_up_at=give_up_at, unless_gone=caller.unless_gone)
            within_s -= time.monotonic() - began
            body = await self._read(caller.receive, share, within_s=within_s)
            self._give_back(share)
            share = len(body)
            self._take(share, is_there=True)
            yield body
        finally:
            self._give_back(share)

    def _take(self, share: int, *, is_there: bool = False) -> None:
        """Takes the share of a body, in any case if the body is there. Raises Overloaded."""
        is_large = share >= LARGE_BODY_BYTES
        room = self._num_bytes
        if is_large and self._num_large:
            room = int((1 - _SMALL_BODIES_SHARE) * room)
        if not is_there and self.num_held + share > room:
            raise self._full()
        self.num_held += share
        self._num_large += is_large

    def _give_back(self, share: int) -> None:
        self.num_held -= share
        self._num_large -= share >= LARGE_BODY_BYTES

    @contextlib.contextmanager
    def extras(self) -> Iterator[Callable[[int], None]]:
        """Holds what one request needs besides its body until the block ends.

        Returns:
            A function that takes a number of bytes; a negative one gives them back. It raises
            Overloaded if they do not fit, unless all extra bytes are this request's own. So one
            request at a time may go past the limit, and a request that does not fit by itself is
            not told to try again for ever.
        """
        num_own = 0

        def hold(num_bytes: int) -> None:
            nonlocal num_own
            is_full = self.num_held + num_bytes > self._num_bytes
            if num_bytes > 0 and is_full and self._num_extra > num_own:
                raise self._full()
            self.num_held += num_bytes
            self._num_extra += num_bytes
            num_own += num_bytes

        try:
            yield hold
        finally:
            self.num_held -= num_own
            self._num_extra -= num_own

    @contextlib.asynccontextmanager
    async def parsing(self, num_bytes: int, *, within_s: float) -> AsyncIterator[None]:
        """Waits until a body of so many bytes may be parsed. Raises DeadlineExceededError.

        A small body does not wait: it is parsed at once, and must not stand behind large bodies
        that wait for each other.
        """
        if num_bytes < self._max_parsed_bytes // _SMALL_BODIES:
            yield
            return
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

    async def _read(self, receive: Receive, max_bytes: int, *, within_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        began = loop.time()
        chunks: list[bytes] = []
        num_bytes, more = 0, True
        while more:
            slow_s = _GRACE_S + num_bytes / _MIN_BYTES_PER_S
            ends_at, problem = min(
                (began + within_s, ""),
                (
                    began + self._max_receive_s,
                    f"did not arrive within {self._max_receive_s:g} s (`request_timeout_s`)",
                ),
                (loop.time() + _MAX_PAUSE_S, f"stopped arriving for {_MAX_PAUSE_S:g} s"),
                (began + slow_s, f"comes at less than {_MIN_BYTES_PER_S} bytes a second"),
            )
            try:
                async with asyncio.timeout_at(ends_at):
                    message = await receive()
            except TimeoutError:
                if problem:
                    raise BodyTimeout(f"the body {problem}") from None
                raise DeadlineExceededError(
                    "the deadline passed before the body was read"
                ) from None
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

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{self.num_held} bytes of requests are held, the limit is {self._num_bytes} "
            "(`max_body_memory_bytes`)",
            retry_after_s=_RETRY_AFTER_S,
        )

    def _too_large(self, size: str) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body has {size}, the limit is {self._max_body_bytes} (`max_body_bytes`)"
        )


async def for_size(num_bytes: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work`, on a thread if it handles so many bytes that others would wait for it.

    Others wait all the same while one call keeps Python's lock. Parsing JSON keeps it, except where
    it calls validators of ours, as it does for each item: a body of 8 MB kept others waiting 3 ms
    at a time if it had thousands of items, and 60 ms if it had one.

    A thread cannot be stopped. A caller that is cancelled waits for its end all the same, so that
    what the caller holds for the thread (a share of a budget) is not given back before.
    """
    if num_bytes < LARGE_BODY_BYTES:
        return work(*args, **kwargs)
    thread = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    cancellation: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait({thread})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        thread.exception()  # looked at, so that asyncio does not log it as forgotten
        raise cancellation
    return thread.result()
