"""Bodies: how many bytes of them a process holds, how many it parses at a time, and on which
thread.

It knows bytes and nothing of what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from tokenreward.errors import DeadlineExceededError, Overloaded
from tokenreward.http.body_stream import declared_bytes, read_body
from tokenreward.http.budget_queue import BudgetQueue
from tokenreward.http.scope import IncomingRequest, Scope

T = TypeVar("T")
P = ParamSpec("P")

LARGE_BODY_BYTES = 256 * 1024
# Python's lock lets one body be parsed at a time in any case. More of them would take memory, and
# the lock from all others for longer.
MAX_PARSED_BYTES = 16 * 2**20
_SMALL_BODIES = 64  # of which one, or so many, are parsed at a time: below LARGE_BODY_BYTES

# Making an object of a value takes as long as reading so many bytes of text.
_VALUE_BYTES = 64

_RETRY_AFTER_S = 1.0
_SHORTEST_WAIT_S = 0.05
# Large bodies together leave this much of the memory to others, so that a few callers who send
# large bodies slowly do not keep out everybody.
_SMALL_BODIES_SHARE = 0.25
# Threads of their own. A request that waits here holds a share of what may be parsed at a time, and
# in asyncio's pool it would wait behind loads of weights.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="bodies")


class BodyBudget:
    """How many bytes of bodies a process holds, in two stages.

    A request takes its share of the memory before the first byte of its body is read, and gives it
    back when the body is dropped. A caller who sends slowly takes its own share from others and
    nothing else. If the share does not fit, the request is refused, or waits in its turn. Large
    bodies and small ones wait apart. While a large one waits, small ones have the quarter of the
    memory that large ones leave to them, and no more. So it gets in at last.

    Large bodies that are there are parsed in turns, because the objects of a parsed body take many
    times its size. A body larger than what may be parsed at a time is parsed alone.

    What a process keeps of a request besides its body counts as well (`extras`).

    Args:
        num_bytes: Bytes that may be held at a time.
        max_body_bytes: The largest body. It is the share of a request that declares no length.
        max_receive_s: Seconds in which a body must arrive, whatever its caller's deadline. Others
            do without its share all that time.
        max_parsed_bytes: Bytes of bodies that may be parsed at a time.

    Attributes:
        num_held: Bytes that are held.
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
        self._large = BudgetQueue(self._take, self._give_back)
        self._small = BudgetQueue(self._take, self._give_back)
        self._parse = BudgetQueue(self._begin_parsing, self._end_parsing)
        self._num_extra = self._num_large = self._small_bytes = 0
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
        declared = declared_bytes(scope, self._max_body_bytes)
        turns = self._large if declared >= LARGE_BODY_BYTES else self._small
        began = time.monotonic()
        waits_s = give_up_at - began
        if not turns.take(declared, may_pass=waits_s < _SHORTEST_WAIT_S):
            if waits_s < _SHORTEST_WAIT_S:
                raise self._full()
            try:
                await turns.wait(declared, caller, within_s=waits_s)
            except TimeoutError:
                raise self._full() from None
        share = declared  # what is taken
        try:
            body = await read_body(
                caller.receive,
                declared,
                max_body_bytes=self._max_body_bytes,
                max_receive_s=self._max_receive_s,
                within_s=within_s - (time.monotonic() - began),
            )
            self._count(len(body), 1)  # it is there, whether or not there is room
            share = len(body)
            self._give_back(declared)
            yield body
        finally:
            self._give_back(share)

    def _take(self, share: int) -> bool:
        """Takes the share of a body if it fits, and says whether it did."""
        room = self._num_bytes
        if share >= LARGE_BODY_BYTES:
            if self._num_large:
                room = int((1 - _SMALL_BODIES_SHARE) * room)
        elif first := self._large.first_share:
            left = min(int(_SMALL_BODIES_SHARE * room), room - first)
            if self._small_bytes + share > left:
                return False
        if self.num_held + share > room:
            return False
        self._count(share, 1)
        return True

    def _give_back(self, share: int) -> None:
        self._count(share, -1)
        self._large.give()
        self._small.give()

    def _count(self, share: int, sign: int) -> None:
        self.num_held += sign * share
        if share >= LARGE_BODY_BYTES:
            self._num_large += sign
        else:
            self._small_bytes += sign * share

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
            if num_bytes < 0:
                self._give_back(0)

        try:
            yield hold
        finally:
            hold(-num_own)

    @contextlib.asynccontextmanager
    async def parsing(
        self, num_bytes: int, caller: IncomingRequest, *, within_s: float
    ) -> AsyncIterator[None]:
        """Waits until a body of so many bytes may be parsed.

        A small body does not wait: it is parsed at once, and must not stand behind large bodies
        that wait for each other. Within the block nothing else is waited for than the parser.

        Raises:
            DeadlineExceededError: The deadline passed before.
            ClientDisconnect: The caller hung up.
        """
        if num_bytes < self._max_parsed_bytes // _SMALL_BODIES:
            yield
            return
        share = min(num_bytes, self._max_parsed_bytes)
        if not self._parse.take(share):
            try:
                await self._parse.wait(share, caller, within_s=within_s)
            except TimeoutError:
                raise DeadlineExceededError(
                    "the deadline passed before the body was parsed"
                ) from None
        try:
            yield
        finally:
            self._end_parsing(share)

    def _begin_parsing(self, share: int) -> bool:
        """Takes a share of what may be parsed at a time if it fits, and says whether it did. A
        body that waits for its turn holds none."""
        if share > self._free_to_parse:
            return False
        self._free_to_parse -= share
        return True

    def _end_parsing(self, share: int) -> None:
        self._free_to_parse += share
        self._parse.give()

    def _full(self) -> Overloaded:
        return Overloaded(
            f"{self.num_held} bytes of requests are held, the limit is {self._num_bytes} "
            "(`max_body_memory_bytes`)",
            retry_after_s=_RETRY_AFTER_S,
        )


def parsed_size(body: bytes) -> int:
    """How many bytes of text take about as long to parse as a body, for `for_size` and `parsing`.

    65,000 items take a second, and have room in 250 kB. In JSON commas stand between values. In
    msgpack nothing does, and one byte of eight is taken for a value.
    """
    is_json = body[:1] < b"\x80"
    return len(body) + _VALUE_BYTES * (body.count(b",") if is_json else len(body) // 8)


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
    context = contextvars.copy_context()  # the log has the request's id from there
    call = partial(context.run, work, *args, **kwargs)
    thread = asyncio.get_running_loop().run_in_executor(_THREADS, call)
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
