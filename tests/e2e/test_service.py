"""The running service, from outside. The tests share one; the last one stops it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from fakes import monitoring
from fakes.listeners import codes, is_loopback
from pushes.run import Pushes

ITEM = {"prompt": "2+2?", "response": "It is 4.", "spans": [[0, 3], [3, 8]]}


@pytest.fixture
def client(service: Any) -> Any:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        yield client


def replicas(client: httpx.Client) -> set[tuple[str, str]]:
    text = client.get("/metrics").text
    return set(re.findall(r'tokenreward_model_version\{deployment="(\w+)",replica="(\w+)"\}', text))


def test_first_lines_tell_progress_address_and_a_command_that_works(service: Any) -> None:
    lines = service.text.splitlines()
    assert any(re.fullmatch(r"lm: ready after [\d.]+ s", line) for line in lines)
    assert f"ready {service.url}" in lines
    command = next(line for line in lines if line.startswith("try: ")).removeprefix("try: ")
    printed = subprocess.run(command, shell=True, capture_output=True, check=True, text=True)  # noqa: S602 - as a user would
    (item,) = json.loads(printed.stdout)["items"]
    assert item["error"] is None
    assert len(item["rewards"]) > 1


def test_ready_and_alive(client: httpx.Client) -> None:
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert client.head("/readyz").status_code == 200
    assert client.post("/v1/rewards/", json={}).status_code == 404
    assert client.get("/d/lm/readyz").status_code == 200


def test_kl_reference_on_another_deployment_is_asked_by_the_gateway(client: httpx.Client) -> None:
    body = {"scorer": "endogenous", "items": [ITEM], "options": {"form": "logprob"}}
    reference = np.array(client.post("/v1/rewards", json=body).json()["items"][0]["rewards"])
    item = {**ITEM, "policy_logprobs": [-1.0, -2.0]}
    plain = client.post("/v1/rewards", json={"scorer": "reward_model", "items": [ITEM]}).json()[
        "items"
    ][0]["rewards"]
    credit = {"kl": {"coef": 0.5, "reference": "endogenous"}}
    reply = client.post(
        "/v1/rewards", json={"scorer": "reward_model", "items": [item], "credit": credit}
    ).json()
    expected = plain - 0.5 * (np.array([-1.0, -2.0]) - reference)
    np.testing.assert_allclose(reply["items"][0]["rewards"], expected, rtol=1e-5, atol=1e-5)
    assert list(reply["sources"]) == ["endogenous"]


def test_direct_route_and_gateway_give_the_same_rewards(client: httpx.Client) -> None:
    entries = client.get("/v1/scorers").json()["scorers"]
    assert {entry["name"] for entry in entries} == {
        "endogenous",
        "one",
        "reward_model",
        "two",
        "facts",
    }
    for entry in entries:
        body = {"scorer": entry["name"], "items": [ITEM]}
        direct, through = (
            client.post(path, json=body).json() for path in (entry["route"], "/v1/rewards")
        )
        got, same = (np.float32(reply["items"][0]["rewards"]) for reply in (direct, through))
        assert got.shape == (2,)
        np.testing.assert_allclose(got, same, atol=1e-5)


def test_scorers_of_two_deployments_combine(client: httpx.Client) -> None:
    body = {"scorers": ["one", "two"], "combine": {"one": 1.0, "two": 0.5}, "items": [ITEM]}
    (item,) = client.post("/v1/rewards", json=body).json()["items"]
    one, two = (np.float64(item["scorers"][name]["rewards"]) for name in ("one", "two"))
    np.testing.assert_allclose(item["rewards"], one + 0.5 * two)


def test_request_id_comes_back_once(client: httpx.Client) -> None:
    for path in ("/v1/rewards", "/d/lm/v1/rewards"):
        body = {"scorer": "one", "items": [ITEM]}
        named = client.post(path, json=body, headers={"x-request-id": "mine-1"})
        assert named.headers.get_list("x-request-id") == ["mine-1"]
        assert named.json()["id"] == "mine-1"
        nameless = client.post(path, json=body)
        assert nameless.headers.get_list("x-request-id") == [nameless.json()["id"]]


def test_our_refusals_pass_rays_proxy(client: httpx.Client) -> None:
    for path in ("/v1/rewards", "/d/lm/v1/rewards"):
        large = client.post(path, content=b" " * 1_000_001)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        chunked = client.post(path, content=(b" " * 100_000 for _ in range(11)))
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
        unknown = client.get(path + "/nowhere")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_route")


def test_our_deadline_fires_before_that_of_rays_proxy(client: httpx.Client) -> None:
    body = {"scorer": "endogenous", "items": [{"prompt": [5] * 200, "response": [6] * 250}] * 1000}
    # Ours comes 0.25 s before the proxy's: the time that its way through a busy machine may take.
    headers = {"x-request-timeout-seconds": "2.5"}
    for path in ("/v1/rewards", "/d/lm/v1/rewards"):
        late = client.post(path, json=body, headers=headers)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_metrics_hold_every_replica_and_both_have_served(client: httpx.Client) -> None:
    for _ in range(30):
        client.post("/v1/rewards", json={"scorer": "endogenous", "items": [ITEM]})
    running = replicas(client)
    assert sorted(deployment for deployment, _ in running) == ["lm", "lm", "rm"]
    text = client.get("/metrics").text
    served = set(
        re.findall(
            r'tokenreward_items_total\{deployment="lm",replica="(\w+)",scorer="endogenous"\}', text
        )
    )
    assert served == {replica for deployment, replica in running if deployment == "lm"}
    assert re.search(
        r'tokenreward_requests_total\{deployment="gateway",replica="\w+",status="200"\}', text
    )


def test_the_number_of_replicas_is_in_the_metrics(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    for deployment, number in (("lm", 2), ("rm", 1), ("gateway", 1)):
        for count in ("desired", "running"):
            series = f'tokenreward_replicas_{count}{{deployment="{deployment}",replica=""}}'
            assert f"{series} {number:.1f}\n" in text


def test_the_service_tells_what_alerts_and_dashboard_read(client: httpx.Client) -> None:
    text = client.get("/metrics").text
    queries = {**monitoring.alerts(), **monitoring.panel_queries()}
    names = set().union(*map(monitoring.metric_names, queries.values()))
    told = set(re.findall(r"^(tokenreward_\w+)\{", text, flags=re.MULTILINE))
    assert names - told <= monitoring.OF_TROUBLE


def test_prometheus_answers_every_query_of_the_dashboard(
    client: httpx.Client, service: Any, tmp_path: Path
) -> None:
    host = service.url.removeprefix("http://")
    with monitoring.prometheus(host, tmp_path) as prometheus:
        for scorer in ("endogenous", "reward_model"):  # both are in the figures before and after
            client.post("/v1/rewards", json={"scorer": scorer, "items": [ITEM]})
        client.post("/v1/rewards", json={"scorer": "reward_model", "items": ["?"]})
        client.post("/v1/rewards", json={"scorers": ["endogenous", "two"], "items": [ITEM] * 9})
        time.sleep(3)
        for panel, query in monitoring.panel_queries().items():
            series = monitoring.answers(prometheus, query)
            assert series or monitoring.metric_names(query) <= monitoring.OF_TROUBLE, panel
        assert {name for name, query in monitoring.alerts().items() if "up{" in query} == {
            "TokenrewardDown"
        }
        for name, query in monitoring.alerts().items():
            assert monitoring.answers(prometheus, query) == [], name


def test_every_listener_is_on_loopback_or_wants_the_token(service: Any) -> None:
    listeners = [
        (process.name(), connection.laddr)
        for process in service.tree()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert any(address.port == int(service.url.rsplit(":", 1)[1]) for _, address in listeners)
    open_ones = [(name, address.port) for name, address in listeners if not is_loopback(address.ip)]
    answers = {(name, port): codes(port) for name, port in open_ones}
    assert all(grpc.StatusCode.UNAUTHENTICATED in statuses for statuses in answers.values()), (
        answers
    )
    assert not any(grpc.StatusCode.OK in statuses for statuses in answers.values()), answers


def test_killed_replica_is_replaced_while_its_sibling_serves(
    service: Any, client: httpx.Client
) -> None:
    before = replicas(client)
    victim = next(
        process for process in service.tree() if process.name().startswith("ray::ServeReplica:lm")
    )
    victim.send_signal(signal.SIGKILL)
    body = {"scorer": "endogenous", "items": [ITEM]}
    statuses = [client.post("/v1/rewards", json=body).status_code for _ in range(5)]
    assert statuses[-1] == 200, statuses
    until = time.monotonic() + 90
    while len(replicas(client) - before) < 1:
        assert client.post("/v1/rewards", json=body).status_code == 200
        assert time.monotonic() < until
        time.sleep(0.5)
    after = replicas(client)
    assert sorted(deployment for deployment, _ in after) == ["lm", "lm", "rm"]
    assert len(before - after) == 1


def test_a_killed_proxy_is_back_within_seconds(service: Any, client: httpx.Client) -> None:
    body = {"scorer": "one", "items": [ITEM]}
    victim = next(each for each in service.tree() if "ProxyActor" in each.name())
    victim.kill()
    began, is_back = time.monotonic(), False
    time.sleep(0.2)
    while not is_back:
        assert time.monotonic() - began < 15  # 4 s on a machine with nothing else to do
        with contextlib.suppress(httpx.HTTPError):
            is_back = client.post("/v1/rewards", json=body).status_code == 200
        time.sleep(0.1)


async def test_pushed_weights_serve_on_all_replicas_and_on_those_that_come_later(
    service: Any, config: Any
) -> None:
    settings = {"name": "lm", "task": "causal_lm", "scorers": [{"type": "endogenous"}]}

    def kill() -> None:
        name = "ray::ServeReplica:lm"
        victim = next(process for process in service.tree() if process.name().startswith(name))
        victim.send_signal(signal.SIGKILL)

    checkpoints = [str(config.parent / "lm"), str(config.parent / "lm-2")]
    pushes = Pushes(service.url, settings, checkpoints, admin_key="the-admin-key")
    await pushes.run(5, kill=kill, kill_every=5)
    outcome = pushes.outcome
    report = outcome.lines()
    assert (outcome.failures, outcome.mixed, outcome.wrong) == ([], [], []), report
    assert outcome.num_kills == 1
    one, other = outcome.final
    assert one == other, report
    assert other in (6, 8), report  # other tests may have pushed twice before


def test_ctrl_c_stops_everything_quickly_and_silently(service: Any) -> None:
    tree, text = service.tree(), service.text
    folder = re.search(r"logs are in (\S+)/session_latest", text)
    assert folder is not None
    began = time.monotonic()
    service.interrupt()
    assert service.process.wait(timeout=10) == 0
    assert time.monotonic() - began < 3
    assert service.text == text
    left = [
        process
        for process in tree
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]
    assert left == []
    assert not Path(folder.group(1)).parent.exists()
