"""The queue of one replica: it admits entries by their tokens, and gives the next batch whenever
the device's thread asks for one.

There is no timer: a batch is made of the entries that wait at that moment, up to a token budget.
The oldest entry is always in it. Behind the oldest, entries that share a prompt stand together.
Entries that fit go before entries that do not fit, until an entry has waited too long to be passed
over. Entries whose caller has gone or whose deadline has passed are dropped before they cost
anything.

The queue knows tokens and futures, and nothing of models. It belongs to one event loop, but any
thread may take a batch.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tokenreward.errors import DeadlineExceededError, LargerThanQueue, Overloaded

EntryT = TypeVar("EntryT", bound="Entry")

_MAX_RETRY_AFTER_S = 60.0
_RATE_MEMORY = 0.8  # the share of the earlier rate in a new one
_LOOK_AHEAD = 256  # entries
# The pause after a scan for gone entries is this many times as long as the scan. So scans take a
# twentieth of the time at most, however many requests are refused meanwhile.
_SCAN_PAUSE = 20
_PATIENCE_S = 0.5  # how long an entry that does not fit lets others go first


@dataclass(slots=True, eq=False, kw_only=True)
class Entry:
    """One thing that may wait in the queue.

    Attributes:
        num_tokens: Tokens that the model will read for it.
        prompts: Keys of the prompts that it reads, with their tokens. A batch computes a prompt
            once for all entries that share its key.
        deadline: A reading of time.monotonic, in seconds; None for no deadline.
        future: Done once nobody waits for the entry any more.
        queued_at: When it began to wait, by time.monotonic.
    """

    num_tokens: int = 0
    prompts: tuple[tuple[Hashable, int], ...] = ()
    deadline: float | None = None
    future: asyncio.Future[Any] = field(init=False)
    queued_at: float = field(init=False)

    def wait(self, future: asyncio.Future[Any], deadline: float | None = None) -> None:
        """Begins to wait. It is called before the entry is submitted."""
        self.future, self.deadline = future, deadline
        self.queued_at = time.monotonic()

    def cost(self, prompts: set[Hashable]) -> int:
        """The tokens that it adds to a batch.

        Args:
            prompts: Keys of the prompts that the batch computes already. The entry's own are added.
        """
        num_saved = 0
        for key, num_tokens in self.prompts:
            if key in prompts:
                num_saved += num_tokens
            prompts.add(key)
        return self.num_tokens - num_saved

    def fail(self, error: Exception) -> None:
        """Answers the caller who waits for it with an error, from any thread."""
        loop = self.future.get_loop()
        if _running_loop() is loop:
            _settle(self.future, error)
        else:
            loop.call_soon_threadsafe(_settle, self.future, error)


class Batcher(Generic[EntryT]):
    """The queue.

    Args:
        max_batch_tokens: The most tokens that a batch computes, a shared prompt counted once. An
            entry that is larger goes alone.
        max_batch_requests: The most entries in a batch.
        max_queued_tokens: The most tokens that may wait, each prompt counted in full.

    Attributes:
        waiting: The entries that wait, the oldest first.
        queued_tokens: Tokens of the entries that wait.
    """

    def __init__(
        self, *, max_batch_tokens: int, max_batch_requests: int, max_queued_tokens: int
    ) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_requests = max_batch_requests
        self._max_queued_tokens = max_queued_tokens
        self.waiting: deque[EntryT] = deque()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()  # of `waiting` and `queued_tokens`, which threads share
        self._tokens_per_s: float | None = None
        self._next_scan = -math.inf  # by time.monotonic
        self.queued_tokens = 0

    @property
    def queued_items(self) -> int:
        """Entries that wait, including entries whose caller has gone unnoticed so far."""
        return len(self.waiting)

    def submit(self, entries: Sequence[EntryT]) -> None:
        """Queues all entries of a request, or none.

        Raises:
            LargerThanQueue: The request alone has more tokens than may wait.
            Overloaded: Too many tokens wait already. It says when to try again.
        """
        num_tokens = sum(entry.num_tokens for entry in entries)
        if num_tokens > self._max_queued_tokens:
            raise LargerThanQueue(
                f"the request has {num_tokens} tokens, `max_queued_tokens` is "
                f"{self._max_queued_tokens}; send it in parts",
                param="items",
            )
        with self._lock:
            if self.queued_tokens + num_tokens > self._max_queued_tokens:
                self._drop_gone()
            if self.queued_tokens + num_tokens > self._max_queued_tokens:
                raise Overloaded(
                    f"{self.queued_tokens} tokens wait and {num_tokens} more would pass "
                    f"`max_queued_tokens` {self._max_queued_tokens}",
                    retry_after_s=self._retry_after_s(num_tokens),
                )
            self.waiting.extend(entries)
            self.queued_tokens += num_tokens
        self._arrived.set()

    def refuse_if_full(self, num_coming: int = 0) -> None:
        """Refuses a request while nothing more fits, before any work is spent on it.

        Args:
            num_coming: Tokens, at least, of requests that are admitted but not queued yet.

        Raises:
            Overloaded: The queue is full.
        """
        with self._lock:
            if self.queued_tokens + num_coming >= self._max_queued_tokens:
                self._drop_gone()
            if self.queued_tokens + num_coming >= self._max_queued_tokens:
                raise Overloaded(
                    f"{self.queued_tokens + num_coming} tokens wait, `max_queued_tokens` is "
                    f"{self._max_queued_tokens}",
                    retry_after_s=self._retry_after_s(num_coming + 1),
                )

    async def wait(self) -> None:
        """Waits until there may be an entry to take. On the event loop."""
        while not self.waiting:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self) -> list[EntryT]:
        """The next batch, on any thread; empty if no entry waits."""
        with self._lock:
            return self._take()

    def note_rate(self, num_tokens: int, seconds: float) -> None:
        """Notes how fast a batch went. `Retry-After` is estimated from it."""
        rate = num_tokens / max(seconds, 1e-6)
        if self._tokens_per_s is not None:
            rate = _RATE_MEMORY * self._tokens_per_s + (1 - _RATE_MEMORY) * rate
        self._tokens_per_s = rate

    def fail_all(self, error: Exception) -> None:
        """Answers every entry that waits with an error, and empties the queue."""
        with self._lock:
            for entry in self.waiting:
                entry.fail(error)
            self.waiting.clear()
            self.queued_tokens = 0

    def _take(self) -> list[EntryT]:
        window = self._pop_window()
        places: set[int] = set()
        prompts: set[Hashable] = set()
        num_tokens = 0
        for place in _prompts_together(window):
            entry = window[place]
            prompts_with_entry = set(prompts)
            cost = entry.cost(prompts_with_entry)
            if places and num_tokens + cost > self._max_batch_tokens:
                if time.monotonic() - entry.queued_at >= _PATIENCE_S:
                    break  # it has waited too long: no later entry goes before it
                continue
            places.add(place)
            prompts = prompts_with_entry
            num_tokens += cost
            if len(places) == self._max_batch_requests or num_tokens >= self._max_batch_tokens:
                break
        # The others go back to the front of the queue, in their order.
        self.waiting.extendleft(
            window[place] for place in range(len(window) - 1, -1, -1) if place not in places
        )
        batch = [entry for place, entry in enumerate(window) if place in places]
        self.queued_tokens -= sum(entry.num_tokens for entry in batch)
        return batch

    def _pop_window(self) -> list[EntryT]:
        """Takes the oldest entries that somebody still waits for, as far ahead as a batch looks.
        Gone entries are dropped."""
        window: list[EntryT] = []
        while self.waiting and len(window) < max(_LOOK_AHEAD, self._max_batch_requests):
            entry = self.waiting.popleft()
            if _gone(entry):
                self.queued_tokens -= entry.num_tokens
            else:
                window.append(entry)
        return window

    def _drop_gone(self) -> None:
        """Drops gone entries, unless the queue was scanned a moment ago: the longer a scan of the
        whole queue takes, the longer the pause after it."""
        began = time.monotonic()
        if began < self._next_scan:
            return
        self.waiting = deque(entry for entry in self.waiting if not _gone(entry))
        self.queued_tokens = sum(entry.num_tokens for entry in self.waiting)
        ended = time.monotonic()
        self._next_scan = ended + _SCAN_PAUSE * (ended - began)

    def _retry_after_s(self, num_tokens: int) -> float:
        """Seconds until the queue has so many tokens left, at the rate of the batches before. They
        are whole, as the header wants them."""
        if not self._tokens_per_s:
            return 1.0
        too_many = self.queued_tokens + num_tokens - self._max_queued_tokens
        return float(min(max(1, math.ceil(too_many / self._tokens_per_s)), _MAX_RETRY_AFTER_S))


def _gone(entry: Entry) -> bool:
    """Whether nobody waits for an entry any more. A deadline that has passed is answered here."""
    if entry.future.done():
        return True
    if entry.deadline is not None and time.monotonic() >= entry.deadline:
        entry.fail(DeadlineExceededError("the deadline passed before the item's batch began"))
        return True
    return False


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _settle(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _prompts_together(window: Sequence[Entry]) -> Iterator[int]:
    """Places in order of arrival, but entries of one prompt follow the first of them."""
    groups: dict[Hashable, list[int]] = {}
    for place, entry in enumerate(window):
        key = entry.prompts[0][0] if entry.prompts else place
        groups.setdefault(key, []).append(place)
    for places in groups.values():
        yield from places
