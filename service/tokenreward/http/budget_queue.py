"""The queue of those who wait for a share of a budget, in turns.

    take -> yes, or wait -> the share is taken

It knows callers and sizes of shares, and nothing of what the budget is of.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from tokenreward.entry import Entry
from tokenreward.fair_queue import FairQueue
from tokenreward.http.scope import IncomingRequest


class BudgetQueue:
    """Those who wait for a share of a budget, in the order of `FairQueue`: callers take turns by
    the sizes of their shares. It belongs to one event loop.

    The first one is woken when its share fits, and nobody else is. So a large share waits for those
    before it alone, however many smaller ones come later.

    Args:
        take: Takes a share of this size if it fits, and says whether it did.
        give_back: Gives a share back, and lets all who may be waiting for it try again.
    """

    def __init__(self, take: Callable[[int], bool], give_back: Callable[[int], None]) -> None:
        self._take = take
        self._give_back = give_back
        self._queue: FairQueue[Entry] = FairQueue()
        # Of those who wait and have been first: the shares together that passed them.
        self._num_passed: Counter[Entry] = Counter()

    @property
    def first_share(self) -> int:
        """The share that the first one waits for; 0 if nobody waits."""
        first = self._first()
        return first.num_tokens if first else 0

    def take(self, share: int, *, may_pass: bool = False) -> bool:
        """Takes a share that fits, if nobody waits.

        Args:
            share: Its size.
            may_pass: Whether those who wait may be passed. It is for callers who do not wait and
                come again later. Together they take as much as the first one waits for, and no
                more: else it might wait for ever.

        Returns:
            Whether it is taken.
        """
        first = self._first()
        if first and not (may_pass and self._num_passed[first] + share <= first.num_tokens):
            return False
        if not self._take(share):
            return False
        if first:
            self._num_passed[first] += share
        return True

    async def wait(self, share: int, caller: IncomingRequest, *, within_s: float) -> None:
        """Returns once the share is taken. If this raises, it is not.

        Raises:
            TimeoutError: Time is up.
            ClientDisconnect: The caller hung up.
        """
        turn = Entry(num_tokens=share)
        turn.wait(asyncio.get_running_loop().create_future(), caller=caller.name)
        self._queue.push([turn])
        self.give()
        try:
            async with asyncio.timeout(within_s):
                await caller.unless_gone(asyncio.wait({turn.future}))
        except BaseException:
            is_taken = not turn.future.cancel()  # the turn came at that moment
            if not is_taken:
                self._queue.withdraw(turn)
            # The next one may want less, and those who wait elsewhere may have waited for this one.
            self._give_back(share if is_taken else 0)
            raise
        finally:
            del self._num_passed[turn]

    def give(self) -> None:
        """Gives the first ones their shares, as far as these fit."""
        while places := self._queue.pop_waiting(1):
            turn = places[0][2]
            is_taken = self._take(turn.num_tokens)
            self._queue.leave(places, {0} if is_taken else ())
            if not is_taken:
                return
            turn.future.set_result(None)

    def _first(self) -> Entry | None:
        places = self._queue.pop_waiting(1)
        self._queue.leave(places, ())
        return places[0][2] if places else None
