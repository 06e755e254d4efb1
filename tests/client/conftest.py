"""A misbehaving server, and clients of both kinds that do not wait long between tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.edge import Edge, serving
from tokenreward_client import AsyncClient, Client, Rewards
from tokenreward_client.retry import Retry


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Edge]:
    """One for each test: a busy machine may deliver a request after the test that sent it."""
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "retry", Retry(first_pause_s=0.001, longest_pause_s=0.002))
    with serving() as edge:
        yield edge


Score = Callable[..., list[Rewards]]


@pytest.fixture(params=["sync", "async"])
def score(request: pytest.FixtureRequest, edge: Edge) -> Score:
    """`score(items, scorer, settings={...}, **options)` on a fresh client of either kind."""

    def run_sync(
        *args: Any, settings: dict[str, Any] | None = None, **options: Any
    ) -> list[Rewards]:
        with Client(edge.url, **(settings or {})) as client:
            return client.score(*args, **options)

    async def run_async(
        *args: Any, settings: dict[str, Any] | None = None, **options: Any
    ) -> list[Rewards]:
        async with AsyncClient(edge.url, **(settings or {})) as client:
            return await client.score(*args, **options)

    if request.param == "sync":
        return run_sync
    return lambda *args, **keywords: asyncio.run(run_async(*args, **keywords))


@pytest.fixture
def items() -> Callable[[int], list[dict[str, Any]]]:
    """`items(n)`: item i has response "r{i}" and two spans, and so rewards [i, i]."""

    def make(num_items: int) -> list[dict[str, Any]]:
        texts = [f"r{index}" for index in range(num_items)]
        return [
            {"prompt": "p", "response": text, "spans": [[0, 1], [1, len(text)]]} for text in texts
        ]

    return make
