"""An entry of the queue: what waits, for how long, and on whose behalf. Which entries go together.

A shared prompt is computed once for all entries of a batch, so entries that share one stay
together. This module knows tokens and futures, and nothing of models, of turns or of locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tokenreward.errors import DeadlineExceededError


@dataclass(slots=True, eq=False, kw_only=True)
class Entry:
    """One thing that may wait in the queue.

    Attributes:
        num_tokens: Tokens that the model will read for it.
        num_extra_tokens: Its work beside them, in tokens. It counts for the queue and for turns,
            and not for a batch.
        prompts: Keys of the prompts that it reads, with their tokens. A batch computes a prompt
            once for all entries that share its key.
        deadline: A reading of time.monotonic, in seconds; None for no deadline.
        caller: Who waits. Callers take turns.
        stays: Whether it is computed here: another replica could not, or was late.
        future: Done once nobody waits for the entry any more.
        queued_at: When it began to wait, by time.monotonic.
    """

    num_tokens: int = 0
    num_extra_tokens: int = 0
    prompts: tuple[tuple[Hashable, int], ...] = ()
    deadline: float | None = None
    caller: Hashable = None
    stays: bool = False
    future: asyncio.Future[Any] = field(init=False)
    queued_at: float = field(init=False)

    @property
    def queued_tokens(self) -> int:
        """What it counts for while it waits."""
        return self.num_tokens + self.num_extra_tokens

    def wait(
        self,
        future: asyncio.Future[Any],
        deadline: float | None = None,
        *,
        caller: Hashable = None,
    ) -> None:
        """Begins to wait. It is called before the entry is submitted."""
        self.future, self.deadline, self.caller = future, deadline, caller
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

    def is_gone(self) -> bool:
        """Whether nobody waits for it any more. A deadline that has passed is answered here."""
        if self.future.done():
            return True
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(DeadlineExceededError("the deadline passed before the item's batch began"))
            return True
        return False


def prompts_together(window: Sequence[Entry]) -> Iterator[int]:
    """Places in order of arrival, but entries of one prompt follow the first of them."""
    groups: dict[Hashable, list[int]] = {}
    for place, entry in enumerate(window):
        groups.setdefault(_prompt(entry) or place, []).append(place)
    for places in groups.values():
        yield from places


EntryT = TypeVar("EntryT", bound=Entry)


def loan_of(
    entries: Sequence[EntryT],
    *,
    max_queued_tokens: int,
    max_batch_tokens: int,
    max_batch_requests: int,
    accepts: Callable[[EntryT], bool],
) -> list[int]:
    """The indices of entries that another replica may compute in one batch: the first ones.

    The last group of entries that share a prompt is left out where it would be cut, unless there is
    no other: both replicas would compute its prompt.

    Args:
        entries: The one whose turn comes last is the first.
        max_queued_tokens: The most that they may count for in the queue.
        max_batch_tokens: The most tokens of the batch, a shared prompt counted once. An entry that
            is larger goes alone.
        max_batch_requests: The most entries.
        accepts: Whether an entry can travel. One that cannot stays, and those behind it may go.
    """
    indices: list[int] = []
    prompts: set[Hashable] = set()
    num_queued = num_tokens = 0
    for index, entry in enumerate(entries):
        if entry.stays:
            continue
        prompts_with_entry = set(prompts)
        cost = entry.cost(prompts_with_entry)
        is_full = len(indices) == max_batch_requests
        is_full |= bool(indices) and num_tokens + cost > max_batch_tokens
        if is_full or num_queued + entry.queued_tokens > max_queued_tokens:
            key = _prompt(entry) or index
            return [each for each in indices if _prompt(entries[each]) != key] or indices
        if not accepts(entry):
            continue
        indices.append(index)
        prompts = prompts_with_entry
        num_queued += entry.queued_tokens
        num_tokens += cost
    return indices


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _settle(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _prompt(entry: Entry) -> Hashable:
    """The key of the prompt by which entries stand together; None if it shares none."""
    return entry.prompts[0][0] if entry.prompts else None
