"""The order in which entries leave the queue: callers take turns by tokens.

Turns are start-time fair queueing (Goyal, Vin and Cheng, 1996). A clock counts tokens instead of
seconds. An entry's turn is the clock's reading when it arrives, or the place where the turns of the
same caller's earlier entries end, whichever is later. When entries leave, the clock moves forward
to their turns, but not past an entry that stays. So a caller who floods the queue waits behind its
own flood, a caller who sends one item waits for about one batch, and the entries of one caller
leave in order of arrival.

It knows no batches, no limits and no threads.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Hashable, Sequence
from typing import Generic, TypeVar

from tokenreward.entry import Entry

EntryT = TypeVar("EntryT", bound=Entry)

_MAX_IDLE_CALLERS = 1024  # that are remembered, beyond one for each entry

# An entry with its turn. The second number is unique, so that entries are never compared.
Place = tuple[int, int, EntryT]


class FairQueue(Generic[EntryT]):
    """Entries in the order of their turns.

    Attributes:
        num_tokens: What the entries count for, in tokens.
    """

    def __init__(self) -> None:
        self._places: list[Place[EntryT]] = []  # a heap
        self._numbers = itertools.count()
        self._clock = 0  # the turn of the entry that left last, in tokens
        self._ends: dict[Hashable, int] = {}  # where the turns of each caller's entries end
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._places)

    def entries(self) -> list[EntryT]:
        """The entries in the order of their turns."""
        return [entry for _, _, entry in sorted(self._places)]

    def push(self, entries: Sequence[EntryT]) -> None:
        """Gives each entry its turn. Neighbours that share a prompt have one turn, so that the
        entries of others do not come between them."""
        prompt_before: Hashable = None
        turn = 0
        for entry in entries:
            start = max(self._clock, self._ends.get(entry.caller, 0))
            prompt = entry.prompts[0][0] if entry.prompts else None
            if prompt is None or prompt != prompt_before:
                turn = start
            prompt_before = prompt
            self._ends[entry.caller] = start + entry.queued_tokens
            heapq.heappush(self._places, (turn, next(self._numbers), entry))
            self.num_tokens += entry.queued_tokens

    def pop_waiting(self, max_entries: int) -> list[Place[EntryT]]:
        """Takes the entries whose turns come next and that somebody still waits for. Gone entries
        are dropped."""
        places: list[Place[EntryT]] = []
        while self._places and len(places) < max_entries:
            place = heapq.heappop(self._places)
            entry = place[2]
            self.num_tokens -= entry.queued_tokens
            if not entry.is_gone():
                places.append(place)
        return places

    def leave(self, places: Sequence[Place[EntryT]], leaving: Container[int]) -> list[EntryT]:
        """Lets some of the entries go that `pop_waiting` took. The others keep their turns.

        Args:
            places: What `pop_waiting` returned.
            leaving: The indices of the entries that leave.

        Returns:
            The entries that leave.
        """
        entries = []
        latest = self._clock
        for index, place in enumerate(places):
            turn, _, entry = place
            if index in leaving:
                latest = max(latest, turn)
                entries.append(entry)
            else:
                heapq.heappush(self._places, place)
                self.num_tokens += entry.queued_tokens
        if not self._places:
            self._ends.clear()  # nobody waits, so nobody has to wait for others
            return entries
        # A batch passes over an entry that does not fit: it goes before whoever comes now.
        self._clock = max(self._clock, min(latest, self._places[0][0]))
        if len(self._ends) > _MAX_IDLE_CALLERS + len(self._places):
            waiting = {entry.caller for _, _, entry in self._places}
            self._ends = {caller: end for caller, end in self._ends.items() if caller in waiting}
        return entries

    def drop_gone(self) -> None:
        """Drops the entries that nobody waits for."""
        self._places = [place for place in self._places if not place[2].is_gone()]
        heapq.heapify(self._places)
        self.num_tokens = sum(entry.queued_tokens for _, _, entry in self._places)

    def clear(self) -> None:
        """Drops all entries."""
        self._places.clear()
        self._ends.clear()
        self.num_tokens = 0
