"""A service with room for three, and callers who want far more: all get through, and nobody
hammers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fakes import web
from fakes.edge import Edge, keyed, scores
from tokenreward_client import AsyncClient, Client, DeadlineExceeded, ServerRefused
from tokenreward_client.retry import Retry

NUM = 200


@dataclass
class Full:
    """Holds `room` requests for `work_s` each and refuses the others, as a replica does. `refused`:
    when. With `is_patient` the first are held until one is refused, however slowly the others
    come."""

    room: int = 3
    work_s: float = 0.005
    held: int = 0
    num_answered: int = 0
    refused: list[float] = field(default_factory=list)
    most_at_once: int = 0
    edge: Edge = field(default_factory=Edge)
    url: str = ""
    is_patient: bool = False
    retry_after_s: int = 1

    async def post(self, request: Request) -> Response:
        body = json.loads(await request.body())
        if self.held >= self.room:
            self.refused.append(time.monotonic())
            error = {"code": "overloaded", "message": "no room", "param": None, "retryable": True}
            return JSONResponse({"error": error}, 503, {"retry-after": str(self.retry_after_s)})
        self.held += 1
        self.most_at_once = max(self.most_at_once, self.held)
        try:
            await asyncio.sleep(self.work_s)
            while self.is_patient and not self.refused:  # noqa: ASYNC110 - nothing to wait for but time
                await asyncio.sleep(self.work_s)
        finally:
            self.held -= 1
        self.num_answered += 1
        return self.edge.ok(body)


@pytest.fixture
def full() -> Iterator[Full]:
    full = Full()
    with web.serving(
        Starlette(routes=[Route("/v1/rewards", full.post, methods=["POST"])])
    ) as full.url:
        yield full


@pytest.fixture(autouse=True)
def one_item_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """And pauses as users have them, with no retry to spare."""
    for kind in (Client, AsyncClient):
        monkeypatch.setattr(kind, "max_request_items", 1)
        monkeypatch.setattr(kind, "retry", Retry())


SETTINGS: dict[str, Any] = {"max_retries": 0, "max_concurrency": NUM, "timeout_s": 120.0}
Ask = Callable[[str, list[Any]], list[Any]]


def one_batch(url: str, items: list[Any]) -> list[Any]:
    with Client(url, **{**SETTINGS, "max_concurrency": 64}) as client:
        return client.score(items)


def one_awaited_batch(url: str, items: list[Any]) -> list[Any]:
    async def ask() -> list[Any]:
        async with AsyncClient(url, **SETTINGS) as client:
            return await client.score(items)

    return asyncio.run(ask())


def threads_that_share_a_client(url: str, items: list[Any]) -> list[Any]:
    with Client(url, **SETTINGS) as client, ThreadPoolExecutor(NUM) as pool:
        return [answer for [answer] in pool.map(lambda item: client.score([item]), items)]


def tasks_that_share_a_client(url: str, items: list[Any]) -> list[Any]:
    async def ask() -> list[Any]:
        async with AsyncClient(url, **SETTINGS) as client:
            return [
                answer
                for [answer] in await asyncio.gather(*(client.score([item]) for item in items))
            ]

    return asyncio.run(ask())


def clients_of_their_own(url: str, items: list[Any]) -> list[Any]:
    async def ask_one(part: list[Any]) -> list[Any]:
        async with AsyncClient(url, **{**SETTINGS, "max_concurrency": 25}) as client:
            return await client.score(part)

    async def ask() -> list[Any]:
        parts = await asyncio.gather(
            *(ask_one(items[place : place + 25]) for place in range(0, len(items), 25))
        )
        return [answer for part in parts for answer in part]

    return asyncio.run(ask())


WAYS = [
    one_batch,
    one_awaited_batch,
    threads_that_share_a_client,
    tasks_that_share_a_client,
    clients_of_their_own,
]


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.__name__)
def test_all_get_through_a_service_with_room_for_three(full: Full, items: Any, ask: Ask) -> None:
    began, full.is_patient = time.monotonic(), True
    assert scores(ask(full.url, items(NUM))) == list(range(NUM))
    assert full.num_answered == NUM
    assert full.most_at_once == 3
    # Sleeping alone, each by its own clock, the callers would be refused thousands of times or
    # leave the device idle.
    assert len(full.refused) <= 3 * NUM
    assert time.monotonic() - began < 60


def test_a_service_that_others_fill_is_asked_by_one_at_a_time_and_ever_less_often(
    full: Full, items: Any
) -> None:
    async def ask() -> None:
        async with AsyncClient(
            full.url, **{**SETTINGS, "max_concurrency": 16, "timeout_s": 8.0}
        ) as client:
            await client.score(items(NUM))

    full.room = 0
    with pytest.raises(DeadlineExceeded):
        asyncio.run(ask())
    assert len(full.refused[16:]) <= 8, (
        "all sixteen at first, then one at a time, a second and more apart"
    )


def test_room_that_comes_back_is_used_at_once(full: Full, items: Any) -> None:
    full.room = 0
    threading.Timer(2.0, lambda: setattr(full, "room", 3)).start()
    began = time.monotonic()
    assert scores(one_awaited_batch(full.url, items(NUM))) == list(range(NUM))
    assert 2 <= time.monotonic() - began < 30


def test_the_first_answer_ends_the_pause_of_a_request_that_was_refused(
    full: Full, items: Any
) -> None:
    async def ask() -> None:
        async with AsyncClient(full.url, **{**SETTINGS, "max_concurrency": 1}) as client:
            full.room, full.retry_after_s = 0, 60
            refused = asyncio.ensure_future(client.score(items(1)))
            await web.until(lambda: bool(full.refused))
            full.room = 3
            await asyncio.sleep(0.6)  # an answer right after the refusal says nothing
            assert scores(await client.score(items(1), timeout_s=1.0)) == [0]
            assert scores(await asyncio.wait_for(refused, 5)) == [0]

    asyncio.run(ask())


def test_a_call_with_little_time_is_sent_although_the_window_is_closed(
    full: Full, items: Any
) -> None:
    async def ask() -> None:
        async with AsyncClient(full.url, **{**SETTINGS, "max_concurrency": 1}) as client:
            full.room = 0
            long = asyncio.ensure_future(client.score(items(1)))
            await web.until(lambda: bool(full.refused))
            full.room = 3
            assert scores(await client.score(items(1), timeout_s=0.5)) == [0]
            assert scores(await long) == [0]

    asyncio.run(ask())


def test_items_of_an_overloaded_deployment_wait_like_requests(
    edge: Edge, score: Any, items: Any
) -> None:
    error = {"code": "overloaded", "message": "m", "param": None, "retryable": True}
    result, bad = {"rewards": [1.0, 2.0], "score": 1.0}, {"rewards": None, "error": error}
    for _ in range(3):
        edge.script.append(lambda body: edge.reply([keyed(0, a=result, b=bad)]))
    edge.script.append(lambda body: edge.reply([keyed(0, a=result, b=result)]))
    [answer] = score(items(1), scorers=["a", "b"], settings={"max_retries": 0})
    assert answer.scorers["b"].rewards.tolist() == [1, 2]
    assert len(edge.seen) == 4


def test_a_call_that_is_cancelled_gives_its_place_back(full: Full, items: Any) -> None:
    async def ask() -> None:
        full.work_s = 30
        async with AsyncClient(full.url, **{**SETTINGS, "max_concurrency": 2}) as client:
            calls = [asyncio.ensure_future(client.score(items(2))) for _ in range(3)]
            await web.until(lambda: full.held == 2)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            full.work_s, full.room = 0.005, 100
            assert scores(await client.score(items(2))) == [0, 1]

    asyncio.run(ask())


def test_a_call_that_fails_gives_its_places_back(edge: Edge, items: Any) -> None:
    with Client(edge.url, **{**SETTINGS, "max_concurrency": 2}) as client:
        for _ in range(3):
            edge.script.append(edge.says(422, "invalid_field", retryable=False))
            with pytest.raises(ServerRefused):
                client.score(items(1))
        assert scores(client.score(items(5))) == list(range(5))
