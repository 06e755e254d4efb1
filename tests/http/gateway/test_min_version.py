"""`min_version`, and requests that wait for it: straight at a deployment, through the gateway, and
where the gateway splits them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from fakes import tiny
from tokenreward.engine.slot import Slot
from tokenreward.http.gateway.scorer_routes import ScorerRoute

ITEM = {"prompt": "2+2?", "response": "It is 4."}
NEEDED = 5
SCORERS = {"lm": "one", "rm": "two"}
DEPLOYMENTS = [
    {
        "name": name,
        "task": "causal_lm",
        "version": 4,
        "scorers": [{"type": "endogenous", "name": scorer}],
    }
    for name, scorer in SCORERS.items()
]


@pytest.fixture(scope="module")
def replicas(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tiny.save(tmp_path_factory.mktemp("versions"))
    with serve(*((settings, folder) for settings in DEPLOYMENTS)) as replicas:
        yield replicas


@pytest.fixture
async def client(replicas: Any, open_gateway: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Of the gateway; the deployments are at version 4."""
    routes = {scorer: ScorerRoute(name, "endogenous") for name, scorer in SCORERS.items()}
    for slot in replicas["slots"].values():
        slot.engine.worker.version = 4
    async with open_gateway(replicas, routes)() as client:
        yield client


@pytest.fixture(params=["direct", "gateway", "split"])
def ask(request: pytest.FixtureRequest, replicas: Any, client: httpx.AsyncClient) -> Any:
    """`ask(**fields)` asks for rewards in one of the three ways."""
    path, scorers = "/v1/rewards", {"scorer": "one"}
    if request.param == "direct":
        path = f"{replicas['url']}/d/lm/v1/rewards"
    if request.param == "split":
        scorers = {"scorers": ["one", "two"]}  # type: ignore[dict-item]

    async def ask(timeout_s: float = 20, **fields: Any) -> httpx.Response:
        body = {**scorers, "items": [ITEM], "min_version": NEEDED, **fields}
        headers = {"x-request-timeout-seconds": str(timeout_s)}
        return await client.post(path, json=body, headers=headers)

    return ask


def reach(slot: Slot, version: int) -> None:
    """What a push does to an engine, on the loop of its server."""

    def change() -> None:
        slot.engine.worker.version = version
        slot.announce()

    loop = slot.engine.worker.loop
    assert loop is not None
    loop.call_soon_threadsafe(change)


@pytest.fixture(autouse=True)
async def warm(client: httpx.AsyncClient) -> None:
    """Both engines have a loop."""
    for scorer in SCORERS.values():
        answer = await client.post("/v1/rewards", json={"scorer": scorer, "items": [ITEM]})
        assert answer.status_code == 200


def code_of(answer: httpx.Response) -> Any:
    return answer.json().get("error", {}).get("code")


async def test_a_version_that_is_not_there_is_refused_at_once(ask: Any) -> None:
    began = time.monotonic()
    answer = await ask()
    assert (answer.status_code, code_of(answer)) == (409, "version_not_reached")
    assert time.monotonic() - began < 5


async def test_a_request_waits_for_the_version(ask: Any, replicas: Any) -> None:
    waiting = asyncio.create_task(ask(wait_for_version_s=15))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    for slot in replicas["slots"].values():
        reach(slot, NEEDED)
    answer = await waiting
    assert answer.status_code == 200, answer.text
    assert f'"version":{NEEDED}' in answer.text


async def test_a_greater_version_will_do(ask: Any, replicas: Any) -> None:
    for slot in replicas["slots"].values():
        reach(slot, NEEDED + 3)
    assert (await ask(wait_for_version_s=15)).status_code == 200


async def test_a_request_waits_no_longer_than_it_says(ask: Any) -> None:
    began = time.monotonic()
    answer = await ask(wait_for_version_s=0.3)
    assert (answer.status_code, code_of(answer)) == (409, "version_not_reached")
    assert 0.3 <= time.monotonic() - began < 5


async def test_the_deadline_ends_the_waiting_and_the_version_is_the_reason(ask: Any) -> None:
    answer = await ask(wait_for_version_s=300, timeout_s=1.5)
    assert (answer.status_code, code_of(answer)) == (409, "version_not_reached")


@pytest.mark.parametrize("seconds", [-1, "1", True, None])
async def test_seconds_are_a_number(ask: Any, seconds: Any) -> None:
    answer = await ask(wait_for_version_s=seconds)
    expected = (409, None) if seconds is None else (422, "wait_for_version_s")
    param = None if seconds is None else answer.json()["error"]["param"]
    assert (answer.status_code, param) == expected


async def test_seconds_without_a_version_have_no_effect_and_are_refused(ask: Any) -> None:
    answer = await ask(wait_for_version_s=1, min_version=None)
    assert (answer.status_code, code_of(answer)) == (422, "invalid_field")
    assert "min_version" in answer.json()["error"]["message"]
