"""Entries that a test can tell from others, and a wait for the next batch of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenreward.batching import Batcher
from tokenreward.entry import Entry


@dataclass(slots=True, eq=False, kw_only=True)
class Labelled(Entry):
    """An entry that a test can tell from others."""

    work: str


MakeEntry = Callable[..., Labelled]
MakeBatcher = Callable[..., Batcher[Labelled]]


async def next_batch(queue: Batcher[Labelled]) -> list[Labelled]:
    """Waits for work, then takes a batch of at least one entry."""
    while True:
        await queue.wait()
        if batch := queue.take():
            return batch
