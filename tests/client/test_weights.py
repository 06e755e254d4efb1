"""`update_weights` and `wait_ready` of both clients, against the gateway's own route."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fakes import web
from fakes.pushes import FakeDeployment, app_of
from tokenreward.errors import InvalidField
from tokenreward.wire.weights import Weights
from tokenreward_client import (
    AsyncClient,
    BadArgument,
    Client,
    DeadlineExceeded,
    ServerRefused,
)
from tokenreward_client.flow import Send

KEY = "the-admin-key"
PUSH: dict[str, Any] = {"checkpoint": "/runs/7", "version": 7, "admin_key": KEY}

Ask = Callable[..., Any]


@pytest.fixture
def deployment() -> FakeDeployment:
    return FakeDeployment()


@pytest.fixture
def url(deployment: FakeDeployment) -> Iterator[str]:
    keys = {"admin_keys": (SecretStr(KEY),), "api_keys": (SecretStr("scoring"),)}
    with web.serving(app_of(deployment, **keys)) as url:
        yield url


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(url, method, ...)` calls a method of a fresh client of either kind."""

    def run_sync(url: str, method: str, *args: Any, **keywords: Any) -> Any:
        with Client(url, api_key="scoring", max_retries=2) as client:
            return getattr(client, method)(*args, **keywords)

    async def run_async(url: str, method: str, *args: Any, **keywords: Any) -> Any:
        async with AsyncClient(url, api_key="scoring", max_retries=2) as client:
            return await getattr(client, method)(*args, **keywords)

    if request.param == "sync":
        return run_sync
    return lambda *args, **keywords: asyncio.run(run_async(*args, **keywords))


def test_a_push_is_served_by_all_replicas(ask: Ask, url: str, deployment: FakeDeployment) -> None:
    reply = ask(url, "update_weights", "lm", **PUSH, adapter="/runs/7/lora")
    assert reply.version == 7
    assert [(each.replica, each.version) for each in reply.replicas] == [("r0", 7), ("r1", 7)]
    assert deployment.registry.pushed("lm") == Weights(
        checkpoint="/runs/7", version=7, adapter="/runs/7/lora"
    )


def test_the_same_push_may_be_made_again(ask: Ask, url: str) -> None:
    ask(url, "update_weights", "lm", **PUSH)
    assert ask(url, "update_weights", "lm", **PUSH).version == 7


def test_an_older_version_is_refused_at_once(ask: Ask, url: str) -> None:
    ask(url, "update_weights", "lm", **PUSH)
    with pytest.raises(ServerRefused) as caught:
        ask(url, "update_weights", "lm", **{**PUSH, "version": 6})
    assert (caught.value.status, caught.value.code) == (409, "version_conflict")
    assert not caught.value.retryable


def test_a_replicas_own_sentence_reaches_the_caller(
    ask: Ask, url: str, deployment: FakeDeployment
) -> None:
    deployment.replicas[0].engine.refusal = InvalidField("no such folder", param="checkpoint")
    with pytest.raises(ServerRefused, match="`checkpoint`: no such folder"):
        ask(url, "update_weights", "lm", **PUSH)


def test_a_scoring_key_pushes_nothing(ask: Ask, url: str) -> None:
    with pytest.raises(ServerRefused) as caught:
        ask(url, "update_weights", "lm", **{**PUSH, "admin_key": "scoring"})
    assert caught.value.status == 401


def test_the_admin_key_is_sent_though_the_url_names_a_user(ask: Ask, url: str) -> None:
    named = url.replace("//", "//me:hush@")
    assert ask(named, "update_weights", "lm", **PUSH).version == 7


def test_a_push_waits_for_one_that_is_under_way(
    ask: Ask, url: str, deployment: FakeDeployment
) -> None:
    turn = deployment.registry.take_turn("lm")
    assert turn is not None
    with pytest.raises(DeadlineExceeded, match="updating"):
        ask(url, "update_weights", "lm", **PUSH, timeout_s=0.5)
    deployment.registry.end_turn("lm", turn)
    assert ask(url, "update_weights", "lm", **PUSH).version == 7


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"version": -1}, "version"),
        ({"version": "7"}, "version"),
        ({"checkpoint": ""}, "checkpoint"),
        ({"checkpoint": 7}, "checkpoint"),
        ({"adapter": ""}, "adapter"),
        ({"admin_key": "two words"}, "admin_key"),
        ({"admin_key": ""}, "admin_key"),
        ({"deployment": "../rm"}, "deployment"),
        ({"deployment": ""}, "deployment"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_cannot_be_sent_is_refused_here(ask: Ask, changes: Any, param: str) -> None:
    arguments = {"deployment": "lm", **PUSH, **changes}
    with pytest.raises(BadArgument) as caught:
        ask("http://127.0.0.1:9", "update_weights", arguments.pop("deployment"), **arguments)
    assert caught.value.param == param
    assert "two words" not in str(caught.value)


def test_the_key_is_not_shown() -> None:
    send = Send("/x", b"{}", 1.0, authorization=f"Bearer {KEY}")
    assert KEY not in repr(send)
    assert send.headers["authorization"] == f"Bearer {KEY}"


class Rising:
    """A service whose versions the test writes: one listing after the other, the last for ever."""

    def __init__(self, *versions: dict[str, int]) -> None:
        self.versions = list(versions)
        self.num_unready = 2

    async def ready(self, _: Request) -> JSONResponse:
        self.num_unready -= 1
        if self.num_unready < 0:
            return JSONResponse({})
        error = {"code": "loading", "message": "m", "param": None, "retryable": True}
        return JSONResponse({"error": error}, 503)

    async def scorers(self, _: Request) -> JSONResponse:
        now = self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]
        return JSONResponse(
            {
                "scorers": [
                    {"name": name, "deployment": name, "version": version}
                    for name, version in now.items()
                ]
            }
        )

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/readyz", self.ready), Route("/v1/scorers", self.scorers)])


@pytest.fixture(autouse=True)
def short_pauses(edge: Any) -> None:
    """Of both clients, by `edge`."""


def test_wait_ready_returns_once_every_deployment_answers(ask: Ask) -> None:
    service = Rising({"lm": 1})
    with web.serving(service.app) as url:
        ask(url, "wait_ready")
    assert service.num_unready == -1


def test_wait_ready_waits_for_a_version_of_all_or_of_one(ask: Ask) -> None:
    service = Rising({"lm": 1, "rm": 1}, {"lm": 2, "rm": 1}, {"lm": 2, "rm": 3})
    with web.serving(service.app) as url:
        ask(url, "wait_ready", version=2, deployment="lm")
        assert len(service.versions) == 1
        ask(url, "wait_ready", version=2)
        with pytest.raises(DeadlineExceeded, match="version 4"):
            ask(url, "wait_ready", version=4, timeout_s=0.6)


def test_both_clients_document_the_same_calls() -> None:
    for name in ("update_weights", "wait_ready"):
        first, second = (inspect.signature(getattr(kind, name)) for kind in (Client, AsyncClient))
        assert first == second


def test_the_weights_are_shown_to_an_admin(ask: Ask, url: str) -> None:
    ask(url, "update_weights", "lm", **PUSH)
    weights = ask(url, "weights", "lm", KEY)
    assert weights.pushed == Weights(checkpoint="/runs/7", version=7)
    assert weights.declared.version == 1
    assert [replica.version for replica in weights.replicas] == [7, 7]
    with pytest.raises(ServerRefused):
        ask(url, "weights", "lm", "scoring")
