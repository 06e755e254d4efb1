"""The queue of one replica: admission by tokens, and the next batch when the device is free.

There is no timer: a batch is whatever waited while the device was busy, in order of arrival, up to a token budget.
Entries whose caller has gone or whose deadline has passed are dropped before they cost anything. It knows tokens and
futures, nothing of models; it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tokenreward.errors import DeadlineExceeded, LargerThanQueue, Overloaded

WorkT = TypeVar("WorkT")
ResultT = TypeVar("ResultT")

_LONGEST_RETRY_AFTER_S = 60.0
_RATE_MEMORY = 0.8


@dataclass(eq=False, slots=True)
class Entry(Generic[WorkT, ResultT]):
    """One item that waits. `deadline` and `queued_at` are readings of time.monotonic, in seconds."""

    work: WorkT
    num_tokens: int
    future: asyncio.Future[ResultT]
    deadline: float | None = None
    queued_at: float = field(default_factory=time.monotonic)


class Batcher(Generic[WorkT, ResultT]):
    """First come, first served, up to `max_batch_tokens` and `max_batch_requests` at a time.

    An entry larger than the budget goes alone. `max_queued_tokens` bounds what may wait.
    """

    def __init__(self, *, max_batch_tokens: int, max_batch_requests: int, max_queued_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_requests = max_batch_requests
        self._max_queued_tokens = max_queued_tokens
        self._waiting: deque[Entry[WorkT, ResultT]] = deque()
        self._arrived = asyncio.Event()
        self._tokens_per_s: float | None = None
        self.queued_tokens = 0

    @property
    def queued_items(self) -> int:
        """Entries that wait, those included whose caller has gone unnoticed so far."""
        return len(self._waiting)

    def submit(self, entries: Sequence[Entry[WorkT, ResultT]]) -> None:
        """Queues all entries of a request, or none. Raises LargerThanQueue, Overloaded."""
        asked = sum(entry.num_tokens for entry in entries)
        if asked > self._max_queued_tokens:
            raise LargerThanQueue(
                f"the request has {asked} tokens, `max_queued_tokens` is {self._max_queued_tokens}; send it in parts",
                param="items",
            )
        if self.queued_tokens + asked > self._max_queued_tokens:
            self._drop_gone()
        if self.queued_tokens + asked > self._max_queued_tokens:
            raise Overloaded(
                f"{self.queued_tokens} tokens wait and {asked} more would pass "
                f"`max_queued_tokens` {self._max_queued_tokens}",
                retry_after_s=self._retry_after_s(asked),
            )
        self._waiting.extend(entries)
        self.queued_tokens += asked
        self._arrived.set()

    def refuse_if_full(self) -> None:
        """Raises Overloaded if nothing more fits, before anything is spent on a request."""
        if self.queued_tokens >= self._max_queued_tokens:
            self._drop_gone()
        if self.queued_tokens >= self._max_queued_tokens:
            raise Overloaded(
                f"{self.queued_tokens} tokens wait, `max_queued_tokens` is {self._max_queued_tokens}",
                retry_after_s=self._retry_after_s(1),
            )

    async def next_batch(self) -> list[Entry[WorkT, ResultT]]:
        """Waits for work, then takes a batch of at least one entry that somebody still waits for."""
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if batch:
                return batch

    def measured(self, num_tokens: int, seconds: float) -> None:
        """Tells how fast a batch went; `Retry-After` is made of it."""
        rate = num_tokens / max(seconds, 1e-6)
        old = self._tokens_per_s
        self._tokens_per_s = rate if old is None else _RATE_MEMORY * old + (1 - _RATE_MEMORY) * rate

    def fail_all(self, error: Exception) -> None:
        """Answers everybody who waits with an error, and forgets them."""
        for entry in self._waiting:
            if not entry.future.done():
                entry.future.set_exception(error)
        self._waiting.clear()
        self.queued_tokens = 0

    def _take(self) -> list[Entry[WorkT, ResultT]]:
        batch: list[Entry[WorkT, ResultT]] = []
        num_tokens = 0
        while self._waiting and len(batch) < self._max_batch_requests:
            entry = self._waiting[0]
            if batch and num_tokens + entry.num_tokens > self._max_batch_tokens and not _gone(entry):
                break
            self._waiting.popleft()
            self.queued_tokens -= entry.num_tokens
            if not _gone(entry):
                batch.append(entry)
                num_tokens += entry.num_tokens
        return batch

    def _drop_gone(self) -> None:
        kept = deque(entry for entry in self._waiting if not _gone(entry))
        self._waiting = kept
        self.queued_tokens = sum(entry.num_tokens for entry in kept)

    def _retry_after_s(self, asked: int) -> float:
        """Until enough of the queue is worked off, at the measured rate; whole seconds, as the header wants them."""
        if not self._tokens_per_s:
            return 1.0
        too_many = self.queued_tokens + asked - self._max_queued_tokens
        return float(min(max(1, math.ceil(too_many / self._tokens_per_s)), _LONGEST_RETRY_AFTER_S))


def _gone(entry: Entry[WorkT, ResultT]) -> bool:
    """Nobody waits for it any more; a deadline that has passed is answered here."""
    if entry.future.done():
        return True
    if entry.deadline is not None and time.monotonic() >= entry.deadline:
        entry.future.set_exception(DeadlineExceeded("the deadline passed before the item's batch began"))
        return True
    return False
