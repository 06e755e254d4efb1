"""Entries and a batcher whose limits a test chooses. A test's clock moves only when the test moves
it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tokenreward import batching
from tokenreward.batching import Batcher, Entry

MakeEntry = Callable[..., Entry[str, str]]
MakeBatcher = Callable[..., Batcher[str, str]]


@dataclass
class Clock:
    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(batching, "time", moved)
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
    ) -> Entry[str, str]:
        prompts = () if prompt is None else ((prompt, shared),)
        return Entry(
            work, num_tokens, asyncio.get_running_loop().create_future(), deadline, prompts
        )

    return make


@pytest.fixture
def batcher() -> MakeBatcher:
    def make(*, tokens: int = 10, requests: int = 100, queue: int = 1000) -> Batcher[str, str]:
        return Batcher(
            max_batch_tokens=tokens, max_batch_requests=requests, max_queued_tokens=queue
        )

    return make
