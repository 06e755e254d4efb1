"""The load is a closed loop: every item once, so many at a time, replies in order, and none is lost
silently."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench import driver
from fakes import web


class Echo:
    """Answers with what it was sent; counts how many it holds at a time, and refuses one."""

    def __init__(self, refused: int | None = None) -> None:
        self.most = self._now = 0
        self.seen: list[int] = []
        self.agents: set[str] = set()
        self._refused = refused
        self.app = Starlette(routes=[Route("/echo", self.echo, methods=["POST"])])

    async def echo(self, request: Request) -> JSONResponse:
        number = await request.json()
        self.seen.append(number)
        self.agents.add(request.headers.get("user-agent", ""))
        self._now += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(0.01 if number % 3 else 0.03)
        self._now -= 1
        return JSONResponse(number, status_code=503 if number == self._refused else 200)


def bodies(count: int) -> list[str]:
    return [json.dumps(number) for number in range(count)]


def test_every_item_is_sent_once_and_its_reply_stands_in_its_place() -> None:
    echo = Echo()
    with web.serving(echo.app) as url:
        load = asyncio.run(driver.drive(f"{url}/echo", bodies(20), concurrency=4))
    assert sorted(echo.seen) == list(range(20))
    assert [json.loads(reply) for reply in load.replies] == list(range(20))
    assert echo.most == 4


def test_latencies_are_of_each_request_and_the_seconds_of_all() -> None:
    echo = Echo()
    with web.serving(echo.app) as url:
        load = asyncio.run(driver.drive(f"{url}/echo", bodies(6), concurrency=1))
    assert load.latencies_s[3] >= 0.03
    assert min(load.latencies_s) >= 0.01
    assert sum(load.latencies_s) <= load.seconds


def test_a_refused_item_ends_the_load_and_is_named() -> None:
    with web.serving(Echo(refused=2).app) as url, pytest.raises(driver.Lost, match="item 2: 503"):
        asyncio.run(driver.drive(f"{url}/echo", bodies(6), concurrency=1))


def test_a_lone_caller_sends_in_order_and_times_each_request() -> None:
    echo = Echo()
    with web.serving(echo.app) as url:
        load = driver.drive_alone(f"{url}/echo", bodies(7))
        with pytest.raises(driver.Lost, match="item 0: 404"):
            driver.drive_alone(f"{url}/nowhere", bodies(2))
    assert echo.seen == [json.loads(reply) for reply in load.replies] == list(range(7))
    assert echo.most == 1
    assert load.latencies_s[3] >= 0.03
    assert sum(load.latencies_s) <= load.seconds


def test_a_refused_item_ends_a_lone_callers_load() -> None:
    with web.serving(Echo(refused=2).app) as url, pytest.raises(driver.Lost, match="item 2: 503"):
        driver.drive_alone(f"{url}/echo", bodies(6))


def test_the_load_comes_from_a_process_of_its_own() -> None:
    with web.serving(Echo().app) as url:
        load = driver.run(
            f"{url}/echo", bodies(5), concurrency=2, cores=frozenset(os.sched_getaffinity(0))
        )
        assert [json.loads(reply) for reply in load.replies] == list(range(5))
        with pytest.raises(driver.Lost, match="item 0: 404"):
            driver.run(
                f"{url}/nowhere", bodies(1), concurrency=1, cores=frozenset(os.sched_getaffinity(0))
            )


@pytest.mark.parametrize(("concurrency", "agent"), [(1, ""), (2, "python-httpx")])
def test_a_lone_caller_goes_without_httpx(concurrency: int, agent: str) -> None:
    echo = Echo()
    with web.serving(echo.app) as url:
        driver.run(
            f"{url}/echo",
            bodies(3),
            concurrency=concurrency,
            cores=frozenset(os.sched_getaffinity(0)),
        )
    assert [found.partition("/")[0] for found in echo.agents] == [agent]
