"""The way of docs/cluster.md onto a cluster, taken in a namespace of its own: HAProxy, keys, the
same numbers, nothing left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fakes import namespace, nodes, tiny
from fakes.pages import code_blocks, page
from tokenreward.config import load_settings
from tokenreward.wire import RewardsRequest, parse

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).with_name("cluster_run.py")
ITEM = {"prompt": [5, 6, 7], "response": [8, 9, 10, 11]}
MANY, LONG = 4000, 100
WITH_KEY = {"headers": {"authorization": "Bearer sesame"}}
# HAProxy's HTTP, statistics and metrics, and the Python proxy behind it: what node.env says of
# them.
HTTP_PORTS = {8000, 8404, 9101, 8500}
REPLICA_PORTS = range(30_000, 31_001)


def commands() -> str:
    """The block on the page of clusters, for one node."""
    (block,) = code_blocks(page("docs/cluster.md"), "bash")
    lines = [line for line in block.splitlines() if "--address=HEAD" not in line]
    assert len(lines) == 6
    return "\n".join(lines).replace("NODE", "127.0.0.1") + "\n"


def large() -> dict[str, Any]:
    """More than 4 MiB each way: what Ray's gRPC takes by default."""
    item = {"prompt": [5], "response": [300] * LONG}
    body = json.dumps({"scorer": "pi", "items": [item] * MANY})
    return {
        "content": body + " " * (5 * 2**20 - len(body)),
        "headers": {**WITH_KEY["headers"], "content-type": "application/json"},
    }


QUESTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gateway": (
        "POST",
        "/v1/rewards",
        {**WITH_KEY, "json": {"scorer": "endogenous", "items": [ITEM]}},
    ),
    "direct": (
        "POST",
        "/d/lm/v1/rewards",
        {**WITH_KEY, "json": {"scorer": "endogenous", "items": [ITEM]}},
    ),
    "both": (
        "POST",
        "/v1/rewards",
        {**WITH_KEY, "json": {"scorers": ["endogenous", "reward_model"], "items": [ITEM]}},
    ),
    "large": ("POST", "/v1/rewards", large()),
    "no key": ("POST", "/v1/rewards", {"json": {"scorer": "endogenous", "items": [ITEM]}}),
    "wrong key": (
        "POST",
        "/d/lm/v1/rewards",
        {"headers": {"authorization": "Bearer simsim"}, "json": {}},
    ),
    "wrong route": ("GET", "/d/lm/v1/nowhere", WITH_KEY),
    "late": (
        "POST",
        "/v1/rewards",
        {
            "headers": {**WITH_KEY["headers"], "x-request-timeout-seconds": "0.5"},
            "json": {
                "scorer": "endogenous",
                "items": [{"prompt": [5] * 200, "response": [6] * 250}] * 400,
            },
        },
    ),
    "named": (
        "POST",
        "/v1/rewards",
        {
            "headers": {**WITH_KEY["headers"], "x-request-id": "mine-1"},
            "json": {"scorer": "pi", "items": [ITEM]},
        },
    ),
    "facts": ("POST", "/v1/rewards", {**WITH_KEY, "json": {"scorer": "facts", "items": [ITEM]}}),
    "metrics": ("GET", "/metrics", WITH_KEY),
    "node is healthy": ("GET", "/-/healthz", {}),
    "pod is alive": ("GET", "http://127.0.0.1:52365/api/local_raylet_healthz", {}),
    "head is ready": ("GET", "http://127.0.0.1:8265/api/gcs_healthz", {}),
    "dashboard": ("GET", "http://127.0.0.1:8265/api/serve/applications/", {}),
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Its path is short, since Ray puts sockets in it, whose paths may not be long."""
    path = Path(tempfile.mkdtemp(prefix="trc-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    """What the cluster said to each of QUESTIONS, and what it left."""
    prepare(folder)
    path = os.pathsep.join(
        [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    )
    modules = os.pathsep.join([str(ROOT / name) for name in ("service", "clients", "tests")])
    ours = {
        "PATH": path,
        "PYTHONPATH": modules,
        "HOME": str(folder),
        "RAY_TMPDIR": str(folder),
        "OMP_NUM_THREADS": "7",
    }
    environment = {**os.environ, **ours}
    try:
        inside = namespace.command([sys.executable, str(RUN), str(folder)])
    except namespace.NotPermitted as reason:
        pytest.skip(f"no namespace here: {reason}")
    with subprocess.Popen(inside, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, stderr = process.communicate(timeout=200)
        finally:
            process.kill()
    output = folder / "output.txt"
    assert process.returncode == 0, f"{stderr}\n{output.read_text() if output.exists() else ''}"
    return dict(json.loads((folder / "answers.json").read_text()))


def prepare(folder: Path) -> None:
    """All that the page's commands name."""
    (folder / "deploy").symlink_to(ROOT / "deploy")
    (folder / "commands.sh").write_text(commands())
    (folder / "questions.json").write_text(json.dumps(QUESTIONS))
    (folder / "keys").write_text("sesame\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "tokenreward").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m tokenreward.cli "$@"\n'
    )
    (folder / "bin" / "tokenreward").chmod(0o755)
    tiny.save(folder / "lm")
    tiny.save(folder / "rm", task="reward_model")
    lm = [
        {"type": "endogenous"},
        {"type": "constant", "name": "pi", "options": {"value": 3.14159265}},
    ]
    deployments = [
        {
            "name": "lm",
            "checkpoint": str(folder / "lm"),
            "task": "causal_lm",
            "num_cpus": 0.4,
            "scorers": lm,
        },
        {
            "name": "rm",
            "checkpoint": str(folder / "rm"),
            "task": "reward_model",
            "num_cpus": 0.4,
            "scorers": [
                {"type": "reward_model"},
                {"type": "fakes.process_facts:Scorer", "name": "facts"},
            ],
        },
    ]
    service = {"host": "0.0.0.0", "api_keys_file": str(folder / "keys"), "deployments": deployments}  # noqa: S104
    (folder / "rewards.yaml").write_text(json.dumps(service))  # JSON is YAML


def reply(answer: dict[str, Any]) -> Any:
    assert answer["status"] == 200, answer
    return json.loads(answer["text"])


def code(answer: dict[str, Any]) -> tuple[int, str]:
    return answer["status"], json.loads(answer["text"])["error"]["code"]


async def test_rewards_are_those_of_the_engine_through_the_gateway_and_directly(
    answers: Any, folder: Path
) -> None:
    from tokenreward.engine import Engine

    engine = Engine.load(
        load_settings(folder / "rewards.yaml").deployments[0], say=lambda line: None
    )
    expected = await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": [ITEM]}))
    await engine.close()
    rewards = expected.items[0].rewards
    for name in ("gateway", "direct"):
        (item,) = reply(answers[name])["items"]
        np.testing.assert_allclose(item["rewards"], rewards, rtol=1e-5, atol=1e-5)
    (item,) = reply(answers["both"])["items"]
    np.testing.assert_allclose(
        item["scorers"]["endogenous"]["rewards"], rewards, rtol=1e-5, atol=1e-5
    )
    assert len(item["scorers"]["reward_model"]["rewards"]) == len(ITEM["response"])


def test_more_than_4_mib_goes_through_the_gateway_both_ways(answers: Any) -> None:
    assert len(large()["content"]) > 4 * 2**20 < len(answers["large"]["text"])
    rewards = np.array([item["rewards"] for item in reply(answers["large"])["items"]], np.float32)
    assert rewards.shape == (MANY, LONG)
    assert np.all(rewards == np.float32(3.14159265))


def test_callers_without_a_key_of_ours_are_refused(answers: Any) -> None:
    assert code(answers["no key"]) == code(answers["wrong key"]) == (401, "unauthorized")


def test_our_refusals_pass_haproxy(answers: Any) -> None:
    assert code(answers["wrong route"]) == (404, "unknown_route")
    assert code(answers["late"]) == (504, "deadline_exceeded")


def test_items_of_callers_who_hung_up_are_never_computed(answers: Any) -> None:
    outcome = answers["callers"]
    assert set(outcome["statuses"]) == {200}
    assert outcome["num_computed"] == outcome["num_asked"]


def test_a_replica_computes_on_its_own_cpus_in_short_turns_and_freezes_what_is_loaded(
    answers: Any,
) -> None:
    threads, omp_threads, turn_s, num_frozen = reply(answers["facts"])["items"][0]["rewards"]
    assert (threads, omp_threads) == (1, 1)  # the nodes were started with OMP_NUM_THREADS=7
    assert turn_s == pytest.approx(0.0005)
    assert num_frozen > 100_000


def test_request_id_comes_back_once(answers: Any) -> None:
    assert [value for key, value in answers["named"]["headers"] if key == "x-request-id"] == [
        "mine-1"
    ]
    assert reply(answers["named"])["id"] == "mine-1"


def test_metrics_hold_every_replica_and_the_gateway(answers: Any) -> None:
    assert answers["metrics"]["status"] == 200
    deployments = re.findall(
        r'tokenreward_requests_total\{deployment="(\w+)",replica="\w+",status="200"\}',
        answers["metrics"]["text"],
    )
    assert sorted(deployments) == ["gateway", "lm", "rm"]


def test_probes_of_nodes_and_pods_are_answered_without_a_key_and_the_dashboard_is_not(
    answers: Any,
) -> None:
    statuses = {
        name: answers[name]["status"]
        for name in ("node is healthy", "pod is alive", "head is ready", "dashboard")
    }
    assert statuses == {
        "node is healthy": 200,
        "pod is alive": 200,
        "head is ready": 200,
        "dashboard": 401,
    }


def test_what_listens_beyond_loopback_is_what_node_env_names_or_wants_the_token(
    answers: Any,
) -> None:
    listening = {port: wants_token for _, port, wants_token in answers["listeners"]}
    assert listening.keys() >= HTTP_PORTS
    others = {
        port: wants_token for port, wants_token in listening.items() if port not in HTTP_PORTS
    }
    assert all(wants_token or port in REPLICA_PORTS for port, wants_token in others.items()), (
        answers["listeners"]
    )
    described = nodes.NODE_ENV.read_text(encoding="utf-8")
    assert all(
        str(port) in described
        for port in (*HTTP_PORTS, REPLICA_PORTS.start, REPLICA_PORTS.stop - 1)
    )


def test_nothing_is_left_in_there_or_out_here(answers: Any, folder: Path) -> None:
    assert answers["left"] == []
    ours = [process for process in psutil.process_iter() if started_in(process, folder)]
    assert ours == []


def started_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.environ().get("RAY_TMPDIR") == str(folder)
    except psutil.Error:
        return False
