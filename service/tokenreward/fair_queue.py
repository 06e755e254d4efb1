"""The order in which entries leave the queue: callers take turns by tokens.

Turns are weighted fair queueing (Demers, Keshav and Shenker, 1989) with equal weights. A clock
counts tokens instead of seconds: while tokens leave, it advances by the share of one caller, which
is these tokens over the number of callers that wait. An entry's turn is the clock's reading when it
arrives, or the place where the turns of the same caller's earlier entries end, whichever is later.
So a caller who floods the queue waits behind its own flood, a caller who sends one item waits for
about one batch, and the entries of one caller leave in order of arrival.

It knows no batches, no limits and no threads.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Container, Hashable, Sequence
from typing import Generic

from tokenreward.entry import EntryT

# A caller is light while what it has waiting is so small a part of a batch, and is expected to come
# back for so long.
_LIGHT_SHARE = 1 / 16
_LIGHT_S = 30.0
# A batch takes about so long while a light caller waits, or is expected, beside one with more than
# a batch. A light caller waits for the batch that runs and for its own.
_SHORT_BATCH_S = 0.05
_LEAST_SHARE = 1 / 16  # of a full batch

# An entry with its turn. The second number is unique, so that entries are never compared.
Place = tuple[float, int, EntryT]


class FairQueue(Generic[EntryT]):
    """Entries in the order of their turns.

    Args:
        max_turn_tokens: The most tokens that the model reads for entries with one turn, a shared
            prompt counted once.

    Attributes:
        num_tokens: What the entries count for, in tokens.
    """

    def __init__(self, max_turn_tokens: float = math.inf) -> None:
        self._max_turn_tokens = max_turn_tokens
        self._places: list[Place[EntryT]] = []  # a heap
        self._numbers = itertools.count()
        self._clock = 0.0  # in tokens
        # Of the callers that wait: where the turns of their entries end, and how many wait.
        self._ends: dict[Hashable, float] = {}
        self._num_entries: Counter[Hashable] = Counter()
        self._tokens_of: Counter[Hashable] = Counter()  # that wait, by caller
        # When light callers last came, by time.monotonic, the latest one last. Two are enough: the
        # other may be the one that floods the queue now.
        self._light_at: dict[Hashable, float] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._places)

    def entries(self) -> list[EntryT]:
        """The entries in the order of their turns."""
        return [entry for _, _, entry in sorted(self._places)]

    def push(self, entries: Sequence[EntryT]) -> None:
        """Gives each entry its turn. Neighbours that share a prompt have one turn, so that the
        entries of others do not come between them. More of them than `max_turn_tokens` have several
        turns, or others would wait until all of them are computed."""
        prompt_before: Hashable = None
        prompts: set[Hashable] = set()
        turn, num_tokens = 0.0, 0
        for entry in entries:
            start = max(self._clock, self._ends.get(entry.caller, 0))
            prompt = entry.prompts[0][0] if entry.prompts else None
            num_tokens += entry.cost(prompts)
            is_first = prompt is None or prompt != prompt_before
            if is_first or num_tokens > self._max_turn_tokens:
                turn, prompts = start, set()
                num_tokens = entry.cost(prompts)
            prompt_before = prompt
            self._ends[entry.caller] = start + entry.queued_tokens
            self._count(entry)
            self._push((turn, next(self._numbers), entry))
        for entry in entries[-1:]:
            if self._tokens_of[entry.caller] <= _LIGHT_SHARE * self._max_turn_tokens < math.inf:
                self._light_at.pop(entry.caller, None)
                self._light_at[entry.caller] = entry.queued_at
        while len(self._light_at) > 2:
            del self._light_at[next(iter(self._light_at))]

    def batch_tokens(self, max_batch_tokens: int, tokens_per_s: float | None, now: float) -> int:
        """The most tokens of a batch now: fewer than a full one has while a light caller is there,
        or was lately, beside a caller that has more than a batch waiting.

        Args:
            max_batch_tokens: The tokens of a full batch.
            tokens_per_s: How fast batches go; None if that is not known.
            now: A reading of time.monotonic.
        """
        if tokens_per_s is None:
            return max_batch_tokens
        floods = {each for each, num in self._tokens_of.items() if num > max_batch_tokens}
        light = {each for each, at in self._light_at.items() if now - at <= _LIGHT_S} - floods
        if not floods or not light:
            return max_batch_tokens
        least = math.ceil(_LEAST_SHARE * max_batch_tokens)
        return min(max_batch_tokens, max(least, int(_SHORT_BATCH_S * tokens_per_s)))

    def pop_waiting(self, max_entries: int) -> list[Place[EntryT]]:
        """Takes the entries whose turns come next and that somebody still waits for. Gone entries
        are dropped."""
        places: list[Place[EntryT]] = []
        while self._places and len(places) < max_entries:
            place = heapq.heappop(self._places)
            entry = place[2]
            self.num_tokens -= entry.queued_tokens
            if entry.is_gone():
                self._forget(entry)
            else:
                places.append(place)
        return places

    def pop_last(self, max_entries: int) -> list[Place[EntryT]]:
        """Takes the entries whose turns come last, the very last first, and that somebody still
        waits for. Gone entries are dropped."""
        places: list[Place[EntryT]] = []
        self._places.sort()  # a sorted list is a heap, too
        while self._places and len(places) < max_entries:
            place = self._places.pop()
            entry = place[2]
            self.num_tokens -= entry.queued_tokens
            if entry.is_gone():
                self._forget(entry)
            else:
                places.append(place)
        return places

    def lend(self, places: Sequence[Place[EntryT]], leaving: Container[int]) -> list[Place[EntryT]]:
        """Lets some of the entries go that `pop_last` took, and puts back the others.

        The clock stands still: it tells how far the turns have come here, and these entries had
        turns that lay ahead. Their callers' next turns begin behind them as before, because their
        callers are served, if elsewhere.

        Args:
            places: What `pop_last` returned.
            leaving: The indices of the entries that leave.

        Returns:
            The entries that leave, with their turns.
        """
        loan = []
        for index, place in enumerate(places):
            if index in leaving:
                self._forget(place[2])
                loan.append(place)
            else:
                self._push(place)
        return loan

    def take_back(self, place: Place[EntryT]) -> None:
        """Lets an entry wait again that `lend` let go. It has the turn that it had."""
        turn, _, entry = place
        end = turn + entry.queued_tokens
        self._ends[entry.caller] = max(end, self._ends.get(entry.caller, 0))
        self._count(entry)
        self._push(place)

    def leave(self, places: Sequence[Place[EntryT]], leaving: Container[int]) -> list[EntryT]:
        """Lets some entries go, and puts back the others that `pop_waiting` took, with their turns.

        Args:
            places: What `pop_waiting` returned.
            leaving: The indices of the entries that leave.

        Returns:
            The entries that leave.
        """
        entries = []
        num_callers = len(self._num_entries)
        for index, place in enumerate(places):
            entry = place[2]
            if index in leaving:
                self._clock += entry.queued_tokens / num_callers
                self._forget(entry)
                entries.append(entry)
            else:
                self._push(place)
        return entries

    def withdraw(self, entry: EntryT) -> None:
        """Drops an entry that gives up, in a queue without prompts.

        The turns of its caller's later entries move up by what it counts for, but not before those
        of callers who come now. Else a caller who gives up and comes again would fall behind
        callers who have just come, though it was not served.
        """
        own = sorted(place for place in self._places if place[2].caller == entry.caller)
        index = next(index for index, place in enumerate(own) if place[2] is entry)
        end = max(own.pop(index)[0], self._clock)
        for later in range(index, len(own)):
            turn, number, other = own[later]
            own[later] = (min(turn, end), number, other)
            end = own[later][0] + other.queued_tokens
        self._places = [place for place in self._places if place[2].caller != entry.caller] + own
        heapq.heapify(self._places)
        self.num_tokens -= entry.queued_tokens
        self._ends[entry.caller] = end
        self._forget(entry)

    def drop_gone(self) -> None:
        """Drops the entries that nobody waits for."""
        places, self._places = self._places, []
        for place in places:
            if place[2].is_gone():
                self.num_tokens -= place[2].queued_tokens
                self._forget(place[2])
            else:
                self._places.append(place)
        heapq.heapify(self._places)

    def clear(self) -> None:
        """Drops all entries."""
        self._places.clear()
        self._ends.clear()
        self._num_entries.clear()
        self._tokens_of.clear()
        self.num_tokens = 0

    def _push(self, place: Place[EntryT]) -> None:
        heapq.heappush(self._places, place)
        self.num_tokens += place[2].queued_tokens

    def _count(self, entry: EntryT) -> None:
        self._num_entries[entry.caller] += 1
        self._tokens_of[entry.caller] += entry.queued_tokens

    def _forget(self, entry: EntryT) -> None:
        """Counts an entry that waits no more. A caller without entries has no turns to wait for."""
        self._num_entries[entry.caller] -= 1
        self._tokens_of[entry.caller] -= entry.queued_tokens
        if not self._num_entries[entry.caller]:
            del self._num_entries[entry.caller], self._ends[entry.caller]
            del self._tokens_of[entry.caller]
