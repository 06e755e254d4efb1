"""Entries and a batcher whose limits a test chooses. A test's clock moves only when the test moves
it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass

import pytest

from fakes.queues import Labelled, MakeBatcher, MakeEntry
from tokenreward import batching
from tokenreward import entry as entries
from tokenreward.batching import Batcher


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(batching, "time", moved)
    monkeypatch.setattr(entries, "time", moved)
    return moved


@pytest.fixture
def entry() -> MakeEntry:
    def make(
        work: str,
        num_tokens: int,
        *,
        deadline: float | None = None,
        prompt: str | None = None,
        shared: int = 0,
        caller: Hashable = None,
    ) -> Labelled:
        prompts = () if prompt is None else ((prompt, shared),)
        waiting = Labelled(work=work, num_tokens=num_tokens, prompts=prompts)
        waiting.wait(asyncio.get_running_loop().create_future(), deadline, caller=caller)
        return waiting

    return make


@pytest.fixture
def batcher() -> MakeBatcher:
    def make(*, tokens: int = 10, requests: int = 100, queue: int = 1000) -> Batcher[Labelled]:
        return Batcher(
            max_batch_tokens=tokens, max_batch_requests=requests, max_queued_tokens=queue
        )

    return make
