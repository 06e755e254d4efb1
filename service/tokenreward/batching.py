"""The queue of one replica: it admits entries by their tokens, and gives the next batch whenever
the device's thread asks for one.

There is no timer: a batch is made of the entries that wait at that moment, up to a token budget.
Callers take turns by tokens, and the entries of one caller leave in order of arrival. The entry
whose turn has come is always in the batch. Behind it, entries that share a prompt stand together.
Entries that fit go before entries that do not fit, until an entry has waited too long to be passed
over. Entries whose caller has gone or whose deadline has passed are dropped before they cost
anything.

Entries whose turns come last may be lent to another replica. They count for admission until they
are settled, or taken back with the turns that they had.

The queue knows tokens and futures, and nothing of models. It belongs to one event loop, but any
thread may take a batch.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic

from tokenreward.entry import EntryT, loan_of, prompts_together
from tokenreward.errors import LargerThanQueue, Overloaded
from tokenreward.fair_queue import FairQueue, Place

_MAX_RETRY_AFTER_S = 60.0
_RATE_MEMORY = 0.8  # the share of the earlier rate in a new one
_LOOK_AHEAD = 256  # entries
# The pause after a scan for gone entries is this many times as long as the scan. So scans take a
# twentieth of the time at most, however many requests are refused meanwhile.
_SCAN_PAUSE = 20
_PATIENCE_S = 0.5  # how long an entry that does not fit lets others go first


class Batcher(Generic[EntryT]):
    """The queue.

    Args:
        max_batch_tokens: The most tokens that a batch computes, a shared prompt counted once. An
            entry that is larger goes alone.
        max_batch_requests: The most entries in a batch.
        max_queued_tokens: The most tokens that may wait, each prompt counted in full, and what
            entries count for beside their tokens.

    Attributes:
        max_batch_tokens: As the argument.
        max_batch_requests: As the argument.
    """

    def __init__(
        self, *, max_batch_tokens: int, max_batch_requests: int, max_queued_tokens: int
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_requests = max_batch_requests
        self._max_queued_tokens = max_queued_tokens
        self._queue: FairQueue[EntryT] = FairQueue(max_batch_tokens)
        self._loans: dict[EntryT, Place[EntryT]] = {}
        self._loan_tokens = 0
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()  # of all that `submit` and `take` change: threads share it
        self._tokens_per_s: float | None = None
        self._next_scan = -math.inf  # by time.monotonic

    @property
    def queued_items(self) -> int:
        """Entries that wait, including entries whose caller has gone unnoticed so far."""
        with self._lock:  # a thread that takes a batch has entries in its hands for a moment
            return len(self._queue)

    @property
    def waiting(self) -> list[EntryT]:
        """The entries that wait, in the order of their turns. From any thread."""
        with self._lock:
            return self._queue.entries()

    @property
    def queued_tokens(self) -> int:
        """What the entries that are not computed yet count for, in tokens, loans included."""
        return self._queue.num_tokens + self._loan_tokens

    @property
    def waiting_tokens(self) -> int:
        """What the entries that wait here count for, in tokens. Loans wait elsewhere."""
        with self._lock:
            return self._queue.num_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """How fast the latest batches went; None until one was computed."""
        return self._tokens_per_s

    def submit(self, entries: Sequence[EntryT], *, is_admitted: bool = False) -> None:
        """Queues all entries of a request, or none.

        Args:
            entries: The entries.
            is_admitted: Whether they were queued before, and are queued again. Then they may pass
                the limits.

        Raises:
            LargerThanQueue: The request alone counts for more tokens than may wait.
            Overloaded: Too many tokens wait already. It says when to try again.
        """
        num_tokens = sum(entry.queued_tokens for entry in entries)
        if not is_admitted:
            self.refuse_larger(num_tokens, sum(entry.num_extra_tokens for entry in entries))
        with self._lock:
            if self.queued_tokens + num_tokens > self._max_queued_tokens:
                self._drop_gone()
            if self.queued_tokens + num_tokens > self._max_queued_tokens and not is_admitted:
                raise Overloaded(
                    f"{self.queued_tokens} tokens wait and {num_tokens} more would pass "
                    f"`max_queued_tokens` {self._max_queued_tokens}",
                    retry_after_s=self._retry_after_s(num_tokens),
                )
            self._queue.push(entries)
        self._arrived.set()

    def refuse_larger(self, num_tokens: int, num_extra: int = 0) -> None:
        """Refuses a request that counts for more tokens than may ever wait. On any thread.

        Args:
            num_tokens: What the request counts for, at least.
            num_extra: How many of these its many scorers add.

        Raises:
            LargerThanQueue: It does.
        """
        if num_tokens > self._max_queued_tokens:
            extra = f", {num_extra} of them for its many scorers" if num_extra else ""
            raise LargerThanQueue(
                f"the request counts for at least {num_tokens} tokens{extra}, `max_queued_tokens` "
                f"is {self._max_queued_tokens}; send it in parts",
                param="items",
            )

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
        while not self.queued_items:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self) -> list[EntryT]:
        """The next batch, on any thread; empty if no entry waits."""
        with self._lock:
            return self._take()

    def lend(
        self,
        max_tokens: int,
        *,
        lends_all: bool = False,
        accepts: Callable[[EntryT], bool] = lambda entry: True,
    ) -> list[EntryT]:
        """Takes entries out for another replica to compute, on any thread.

        They are the entries whose turns come last: half of what waits here at most, and one batch
        of the other replica. A group of entries that share a prompt is not cut, unless the loan is
        made of that group alone: each replica would compute the prompt.

        Args:
            max_tokens: The most tokens that the other replica computes, a shared prompt counted
                once. An entry that is larger goes alone.
            lends_all: Whether more than half of what waits may leave.
            accepts: Whether an entry can travel. It is asked once for each entry that would leave,
                the last turn first, and an entry that it refuses stays.

        Returns:
            The entries; none where too little waits. Each must be settled or taken back.
        """
        with self._lock:
            places = self._queue.pop_last(max(_LOOK_AHEAD, self.max_batch_requests))
            window = [entry for _, _, entry in places]
            num_queued = self._queue.num_tokens + sum(entry.queued_tokens for entry in window)
            indices: list[int] = []
            try:
                indices = loan_of(
                    window,
                    max_queued_tokens=num_queued if lends_all else num_queued // 2,
                    max_batch_tokens=max_tokens,
                    max_batch_requests=self.max_batch_requests,
                    accepts=accepts,
                )
            finally:  # whatever `accepts` raises, all entries wait again
                loan = self._queue.lend(places, set(indices))
            self._loans.update((place[2], place) for place in loan)
            entries = [entry for _, _, entry in loan]
            self._loan_tokens += sum(entry.queued_tokens for entry in entries)
            return entries

    def take_back(self, entries: Sequence[EntryT]) -> None:
        """Lets loans wait here again, with the turns that they had. They are not lent again.

        Entries that are on loan no more, or whose caller has gone, are left out. On the event loop.
        """
        with self._lock:
            for entry in entries:
                place = self._end_loan(entry)
                entry.stays = True
                if place is not None and not entry.is_gone():
                    self._queue.take_back(place)
        self._arrived.set()

    def settle(self, entry: EntryT) -> bool:
        """Ends the loan of an entry that another replica computed.

        Returns:
            Whether it was still on loan.
        """
        with self._lock:
            return self._end_loan(entry) is not None

    def note_rate(self, num_tokens: int, seconds: float) -> None:
        """Notes how fast a batch went. `Retry-After` is estimated from it."""
        rate = num_tokens / max(seconds, 1e-6)
        if self._tokens_per_s is not None:
            rate = _RATE_MEMORY * self._tokens_per_s + (1 - _RATE_MEMORY) * rate
        self._tokens_per_s = rate

    def fail_all(self, error: Exception) -> None:
        """Answers every entry that waits with an error, loans included, and empties the queue."""
        with self._lock:
            for entry in (*self._queue.entries(), *self._loans):
                entry.fail(error)
            self._queue.clear()
            self._loans.clear()
            self._loan_tokens = 0

    def _take(self) -> list[EntryT]:
        heads = self._queue.pop_waiting(max(_LOOK_AHEAD, self.max_batch_requests))
        window = [entry for _, _, entry in heads]
        places: set[int] = set()
        prompts: set[Hashable] = set()
        num_tokens, now = 0, time.monotonic()
        fewer = self._queue.batch_tokens(self.max_batch_tokens, self._tokens_per_s, now)
        for place in prompts_together(window):
            entry = window[place]
            prompts_with_entry = set(prompts)
            cost = entry.cost(prompts_with_entry)
            shares = bool(entry.prompts) and entry.prompts[0][0] in prompts
            # Entries that share a prompt are not told apart, or each batch would compute it.
            if places and num_tokens + cost > (self.max_batch_tokens if shares else fewer):
                if now - entry.queued_at >= _PATIENCE_S:
                    break  # it has waited too long: no later entry goes before it
                continue
            places.add(place)
            prompts = prompts_with_entry
            num_tokens += cost
            if len(places) == self.max_batch_requests or num_tokens >= self.max_batch_tokens:
                break
        return self._queue.leave(heads, places)

    def _end_loan(self, entry: EntryT) -> Place[EntryT] | None:
        place = self._loans.pop(entry, None)
        if place is not None:
            self._loan_tokens -= entry.queued_tokens
        return place

    def _drop_gone(self) -> None:
        """Drops gone entries, unless the queue was scanned a moment ago."""
        began = time.monotonic()
        if began < self._next_scan:
            return
        self._queue.drop_gone()
        for entry in [entry for entry in self._loans if entry.is_gone()]:
            self._end_loan(entry)
        ended = time.monotonic()
        self._next_scan = ended + _SCAN_PAUSE * (ended - began)

    def _retry_after_s(self, num_tokens: int) -> float:
        """Seconds until the queue has so many tokens left, at the rate of the batches before. They
        are whole, as the header wants them."""
        if not self._tokens_per_s:
            return 1.0
        too_many = self.queued_tokens + num_tokens - self._max_queued_tokens
        return float(min(max(1, math.ceil(too_many / self._tokens_per_s)), _MAX_RETRY_AFTER_S))
