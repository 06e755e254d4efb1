"""`/v1/deployments/{name}/weights`: who may ask, which versions are taken, and that a push changes
all replicas or none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import SecretStr
from starlette.routing import Route

from fakes import web
from fakes.pushes import FakeDeployment, app_of, backend_of, settings_of
from tokenreward.errors import InvalidField, Loading
from tokenreward.http.app import build_app
from tokenreward.http.gateway.push_turn import registered
from tokenreward.http.openapi import document
from tokenreward.wire.weights import Weights

PATH = "/v1/deployments/lm/weights"
ADMIN, SCORING = "the-admin-key", "the-scoring-key"


def push(version: int = 2, checkpoint: str = "/pushed", **fields: Any) -> dict[str, Any]:
    return {"checkpoint": checkpoint, "version": version, **fields}


@pytest.fixture
def deployment() -> FakeDeployment:
    return FakeDeployment()


@pytest.fixture
async def client(deployment: FakeDeployment) -> AsyncIterator[httpx.AsyncClient]:
    keys = {"admin_keys": (SecretStr("another"), SecretStr(ADMIN))}
    app = app_of(deployment, **keys, api_keys=(SecretStr(SCORING),))
    headers = {"authorization": f"Bearer {ADMIN}"}
    async with (
        web.serving_here(app) as url,
        httpx.AsyncClient(base_url=url, timeout=20, headers=headers) as client,
    ):
        yield client


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def refuse_unlike(name: str, content: Any) -> None:
    components = document(admin=True)["components"]
    schema = {"$ref": f"#/components/schemas/{name}", "components": components}
    jsonschema.Draft202012Validator(schema).validate(content)


async def test_a_push_changes_all_replicas(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    answer = await client.post(PATH, json=push(7))
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    refuse_unlike("PushReply", reply)
    assert reply["version"] == 7
    assert reply["seconds"] > 0
    assert reply["replicas"] == [
        {"replica": name, "version": 7, "error": None} for name in ("r0", "r1")
    ]
    assert deployment.versions == [7, 7]
    assert deployment.registry.pushed("lm") == Weights(**push(7))


async def test_the_weights_of_a_deployment_are_shown(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    shown = (await client.get(PATH)).json()
    refuse_unlike("DeploymentWeights", shown)
    assert shown["pushed"] is None
    assert shown["declared"]["version"] == 1
    assert [replica["version"] for replica in shown["replicas"]] == [1, 1]
    deployment.replicas[1].is_dead = True
    await client.post(PATH, json=push(3, adapter="/lora"))
    deployment.replicas[1].is_dead = False
    shown = (await client.get(PATH)).json()
    refuse_unlike("DeploymentWeights", shown)
    assert shown["pushed"] == push(3, adapter="/lora", reference_checkpoint=None)
    assert [replica["version"] for replica in shown["replicas"]] == [3, 1]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", f"Bearer {SCORING}", f"Basic {ADMIN}", ADMIN, f"Bearer {ADMIN}x", "Bearer \xff"],
)
async def test_only_an_admin_key_opens_the_route(
    client: httpx.AsyncClient, deployment: FakeDeployment, method: str, authorization: Any
) -> None:
    del client.headers["authorization"]
    headers = {} if authorization is None else {"authorization": authorization.encode("latin-1")}
    answer = await client.request(method, PATH, json=push(), headers=headers)
    assert (answer.status_code, code_of(answer)) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert SCORING not in answer.text
    assert ADMIN not in answer.text
    assert deployment.calls == []


@pytest.mark.parametrize("path", ["/v1/scorers", "/metrics", "/v1/rewards"])
async def test_an_admin_key_opens_no_other_route(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 401


async def test_a_path_that_ends_in_a_line_feed_opens_the_route_to_nobody(
    deployment: FakeDeployment,
) -> None:
    """The router takes it for the path without the line feed."""
    app = app_of(deployment, admin_keys=(SecretStr(ADMIN),))
    async with web.serving_here(app) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(f"{PATH}%0A", json=push())
    assert (answer.status_code, code_of(answer)) == (404, "unknown_route")
    assert deployment.calls == []


async def test_admin_keys_are_wanted_in_a_service_that_is_open_to_scoring(
    deployment: FakeDeployment,
) -> None:
    app = app_of(deployment, admin_keys=(SecretStr(ADMIN),))
    async with web.serving_here(app) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.post(PATH, json=push())).status_code == 401
        headers = {"authorization": f"bearer {ADMIN}"}
        assert (await client.post(PATH, json=push(), headers=headers)).status_code == 200


async def test_without_admin_keys_there_is_no_route() -> None:
    app = build_app(backend_of())
    async with web.serving_here(app) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(PATH, json=push())
        assert (answer.status_code, code_of(answer)) == (404, "unknown_route")
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if "deployments" in path]


async def test_the_document_has_the_route_where_it_is(client: httpx.AsyncClient) -> None:
    content = (await client.get("/openapi.json")).json()
    assert content == document(admin=True)
    app = build_app(backend_of(), lambda _: None)  # type: ignore[arg-type, return-value]
    routes = {route.path for route in app.routes if isinstance(route, Route)}
    assert {path for path in content["paths"] if "{" in path} == {
        path for path in routes if "{" in path
    }
    example = content["paths"]["/v1/deployments/{name}/weights"]["post"]["requestBody"]
    refuse_unlike("Weights", example["content"]["application/json"]["example"])
    answers = content["paths"]["/v1/deployments/{name}/weights"]["post"]["responses"]
    assert answers["500"]["description"] == "`internal`"
    assert "deployments" in (await client.get("/docs")).text


async def test_other_methods_and_paths_are_no_routes(client: httpx.AsyncClient) -> None:
    for method, path in (("PUT", PATH), ("DELETE", PATH)):
        answer = await client.request(method, path)
        assert (answer.status_code, code_of(answer)) == (404, "unknown_route")
    answer = await client.get("/v1/deployments/nobody/weights")
    assert (answer.status_code, code_of(answer)) == (404, "unknown_route")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"checkpoint": "/x"}, 422, "version"),
        ({"version": 2}, 422, "checkpoint"),
        (push(adapter=3), 422, "adapter"),
        (push(dtype="float32"), 422, "dtype"),
        ([], 400, None),
    ],
)
async def test_a_wrong_body_is_refused_and_nothing_is_asked(
    client: httpx.AsyncClient, deployment: FakeDeployment, body: Any, status: int, param: Any
) -> None:
    answer = await client.post(PATH, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert deployment.calls == []


async def test_a_version_must_be_greater_than_the_pushed_one(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    await client.post(PATH, json=push(5))
    for version in (0, 1, 4):
        answer = await client.post(PATH, json=push(version))
        assert (answer.status_code, code_of(answer)) == (409, "version_conflict")
        assert "5" in answer.json()["error"]["message"]
    assert deployment.versions == [5, 5]


async def test_a_version_must_be_greater_than_the_declared_one(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json=push(0))
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "version")
    assert "declared" in answer.json()["error"]["message"]


async def test_the_same_push_again_is_answered_and_prepares_nothing(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    first = await client.post(PATH, json=push(5))
    again = await client.post(PATH, json=push(5))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["replicas"] == first.json()["replicas"]
    assert [replica.engine.num_prepared for replica in deployment.replicas] == [1, 1]


async def test_the_same_push_again_serves_it_on_replicas_that_missed_it(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.registry.record("lm", Weights(**push(5)))  # whose gateway died before the commit
    answer = await client.post(PATH, json=push(5))
    assert answer.status_code == 200
    assert deployment.versions == [5, 5]


async def test_the_declared_weights_may_be_pushed_and_change_nothing(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    answer = await client.post(PATH, json=push(1, "/declared"))
    assert answer.status_code == 200, answer.text
    assert deployment.registry.pushed("lm") is None


@pytest.mark.parametrize("other", [push(5, "/other"), push(5, adapter="/other")])
async def test_the_same_version_of_other_weights_is_refused_with_both(
    client: httpx.AsyncClient, deployment: FakeDeployment, other: Any
) -> None:
    await client.post(PATH, json=push(5))
    answer = await client.post(PATH, json=other)
    assert (answer.status_code, code_of(answer)) == (409, "version_conflict")
    message = answer.json()["error"]["message"]
    assert "/pushed" in message
    assert "/other" in message
    assert deployment.registry.pushed("lm") == Weights(**push(5))


async def test_declared_weights_are_refused_under_the_version_of_others_that_were_pushed(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    await client.post(PATH, json=push(5))
    for replica in deployment.replicas:
        replica.follower.declare(settings_of(Weights(**push(5, "/declared"))))
        await replica.follower.catch_up()
    answer = await client.post(PATH, json=push(5, "/declared"))
    assert (answer.status_code, code_of(answer)) == (409, "version_conflict")
    assert answer.json()["error"]["message"] == "version 5 is `/pushed`, and cannot be `/declared`"
    assert [replica.engine.served.checkpoint for replica in deployment.replicas] == ["/pushed"] * 2
    assert (await client.post(PATH, json=push(5))).status_code == 200


@pytest.mark.parametrize(
    ("refusal", "status", "code", "message"),
    [
        (
            InvalidField("`a.weight` is [2], the model's is [3]", param="checkpoint"),
            422,
            "invalid_field",
            "`a.weight` is [2], the model's is [3]",
        ),
        (Loading("not enough memory now"), 503, "loading", "not enough memory now"),
        (
            RuntimeError("secret"),
            500,
            "internal",
            "the weights cannot be served: RuntimeError, see the replica's log",
        ),
    ],
)
async def test_a_replica_that_cannot_prepare_leaves_all_as_they_were(
    client: httpx.AsyncClient,
    deployment: FakeDeployment,
    refusal: Any,
    status: int,
    code: str,
    message: str,
) -> None:
    deployment.replicas[1].engine.refusal = refusal
    answer = await client.post(PATH, json=push(5))
    assert (answer.status_code, code_of(answer)) == (status, code)
    assert answer.json()["error"]["message"] == message
    assert answer.json()["error"]["param"] == getattr(refusal, "param", None)
    assert deployment.versions == [1, 1]
    assert deployment.prepared == [None, None]
    assert deployment.registry.pushed("lm") is None
    deployment.replicas[1].engine.refusal = None
    assert (await client.post(PATH, json=push(5))).status_code == 200


async def test_a_replica_that_does_not_answer_leaves_all_as_they_were(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.silent_at = {"prepare_weights"}
    answer = await client.post(PATH, json=push(5))
    assert (answer.status_code, code_of(answer)) == (503, "loading")
    assert (deployment.versions, deployment.prepared) == ([1, 1], [None, None])


async def test_replicas_that_died_are_not_waited_for(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.replicas[0].is_dead = True
    answer = await client.post(PATH, json=push(5))
    assert answer.status_code == 200
    assert [replica["replica"] for replica in answer.json()["replicas"]] == ["r1"]


async def test_a_deployment_without_replicas_is_loading(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    for replica in deployment.replicas:
        replica.is_dead = True
    answer = await client.post(PATH, json=push(5))
    assert (answer.status_code, code_of(answer)) == (503, "loading")
    assert deployment.registry.pushed("lm") is None
    assert (await client.get(PATH)).json()["replicas"] == []


async def test_a_replica_that_missed_the_commit_is_named(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.silent_at = {"commit_weights"}
    answer = await client.post(PATH, json=push(5))
    assert answer.status_code == 200
    refuse_unlike("PushReply", answer.json())
    committed, missing = answer.json()["replicas"]
    assert committed == {"replica": "r1", "version": 5, "error": None}
    assert (missing["replica"], missing["version"]) == ("r0", None)
    assert missing["error"]["retryable"]
    await deployment.replicas[0].follower.catch_up()
    assert deployment.versions == [5, 5]


async def test_a_second_push_waits_for_its_turn(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    gate = deployment.replicas[1].engine.gate = asyncio.Event()
    first = asyncio.create_task(client.post(PATH, json=push(5)))
    await web.until(lambda: "prepare_weights" in deployment.calls)
    second = await client.post(PATH, json=push(6))
    assert (second.status_code, code_of(second)) == (503, "updating")
    assert "retry-after" in second.headers
    gate.set()
    assert (await first).status_code == 200
    assert (await client.post(PATH, json=push(6))).status_code == 200


async def test_a_caller_that_hangs_up_leaves_no_push_half_done(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    gate = deployment.replicas[0].engine.gate = asyncio.Event()
    caller = asyncio.create_task(client.post(PATH, json=push(5)))
    await web.until(lambda: "prepare_weights" in deployment.calls)
    caller.cancel()
    await asyncio.sleep(0.05)
    gate.set()
    await web.until(lambda: deployment.versions == [5, 5])


async def test_a_slow_replica_is_late_and_nothing_changes(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.replicas[0].engine.gate = asyncio.Event()
    headers = {"x-request-timeout-seconds": "0.4"}
    answer = await client.post(PATH, json=push(5), headers=headers)
    assert (answer.status_code, code_of(answer)) == (504, "deadline_exceeded")
    assert (deployment.versions, deployment.prepared) == ([1, 1], [None, None])


async def test_without_the_registry_nothing_is_pushed(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.store.error = OSError("GCS is gone")
    answer = await client.post(PATH, json=push(5))
    assert (answer.status_code, code_of(answer)) == (503, "loading")
    assert (await client.get(PATH)).status_code == 503
    assert deployment.calls == []


async def test_weights_are_not_shown_late_because_the_registry_keeps_silent(
    client: httpx.AsyncClient, deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.http.gateway.weights.STATUS_S", 0.1)
    deployment.store.delays_s = {"keys": 2.0}
    async with asyncio.timeout(1.5):
        answer = await client.get(PATH)
    assert (answer.status_code, code_of(answer)) == (503, "loading")


async def test_a_push_that_lost_its_turn_changes_nothing(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    gate = deployment.replicas[0].engine.gate = asyncio.Event()
    first = asyncio.create_task(client.post(PATH, json=push(5)))
    await web.until(lambda: "prepare_weights" in deployment.calls)
    deployment.store.values[f"turn/lm/{2:020d}"] = b"1e12"  # somebody who thought that it was dead
    gate.set()
    answer = await first
    assert (answer.status_code, code_of(answer)) == (503, "updating")
    assert (deployment.versions, deployment.prepared) == ([1, 1], [None, None])
    assert deployment.registry.pushed("lm") is None


async def test_a_turn_that_came_after_the_deadline_is_given_up_at_once(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.store.delays_s = {"put": 0.5}
    answer = await client.post(PATH, json=push(5), headers={"x-request-timeout-seconds": "0.3"})
    assert (answer.status_code, code_of(answer)) == (503, "loading")
    deployment.store.delays_s = {}
    await web.until(lambda: list(deployment.store.values.values()) == [b"0"])  # and ended
    assert (await client.post(PATH, json=push(5))).status_code == 200


async def test_a_push_whose_deadline_passed_is_not_recorded_and_the_answer_says_why(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    gate = deployment.replicas[0].engine.gate = asyncio.Event()
    headers = {"x-request-timeout-seconds": "1.5"}
    began = asyncio.create_task(client.post(PATH, json=push(5), headers=headers))
    await web.until(lambda: "prepare_weights" in deployment.calls)
    deployment.store.delays_s = {"put": 1.5}  # the turn is renewed before anything is recorded
    gate.set()
    answer = await began
    assert (answer.status_code, code_of(answer)) == (504, "deadline_exceeded")
    assert deployment.registry.pushed("lm") is None
    assert (deployment.versions, deployment.prepared) == ([1, 1], [None, None])


async def test_replicas_that_had_no_time_to_answer_are_not_said_to_be_missing(
    client: httpx.AsyncClient, deployment: FakeDeployment
) -> None:
    deployment.delays_s = {"weights_status": 2.5}
    answer = await client.post(PATH, json=push(5), headers={"x-request-timeout-seconds": "2"})
    assert (answer.status_code, code_of(answer)) == (504, "deadline_exceeded")
    assert deployment.versions == [1, 1]


async def test_calls_of_a_registry_that_hangs_keep_no_thread_from_others() -> None:
    gate = threading.Event()
    calls = [registered(gate.wait, within_s=0.05) for _ in range(60)]
    try:
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Loading}
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 2) == "read"
    finally:
        gate.set()
    assert await registered(lambda: "there", within_s=5) == "there"
