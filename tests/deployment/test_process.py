"""What a replica's process sets for itself, and that weights which are replaced leave a process
that froze them."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._common.formatters import JSONFormatter
from uvicorn.protocols.websockets import auto

from fakes import web
from fakes.pushes import MemoryStore
from tokenreward.deployment import process
from tokenreward.deployment.replica import Replica
from tokenreward.http.app import refuse_websockets
from tokenreward.http.gateway.registry import Registry
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.weights import Weights


@pytest.fixture
def this_process() -> Iterator[None]:
    """As it was, afterwards."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    environment = dict(os.environ)
    ours, websockets = logging.getLogger("tokenreward"), auto.AutoWebSocketsProtocol
    parent = ours.parent
    yield
    ours.parent = parent
    auto.AutoWebSocketsProtocol = websockets
    gc.unfreeze()
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    os.environ.clear()
    os.environ.update(environment)


class Alone:
    """The peers of a replica that has none."""

    address = "this"

    def __init__(self, deployment: str) -> None:
        pass

    async def addresses(self) -> list[str]:
        return [self.address]


@pytest.fixture
def replica(this_process: None, language_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that Ray wraps, without Ray."""
    store = MemoryStore()
    monkeypatch.setattr("tokenreward.deployment.replica.RayKeyValues", lambda: store)
    monkeypatch.setattr("tokenreward.deployment.replica.RayPeers", Alone)
    limits = {"max_body_bytes": 1000, "max_request_items": 8, "request_timeout_s": 30.0}
    deployment = {
        "name": "lm",
        "task": "causal_lm",
        "device": "cpu",
        "scorers": [{"type": "endogenous"}],
    }
    mine = Replica.func_or_class.__mro__[1]
    replica = object.__new__(mine)
    mine.__init__(replica, {"limits": limits, "api_keys_file": None, "deployment": deployment})
    replica.registry = Registry(store)
    return replica


@pytest.mark.parametrize(("num_cpus", "threads"), [(0.5, 1), (1, 1), (1.5, 1), (2, 2), (2.5, 2)])
def test_torch_gets_as_many_threads_as_the_replica_has_cpus(num_cpus: float, threads: int) -> None:
    code = (
        "import sys; from tokenreward.deployment.process import limit_threads;"
        "assert 'torch' not in sys.modules;"
        f"limit_threads({num_cpus}); import torch; print(torch.get_num_threads())"
    )
    wrong = {**os.environ, "OMP_NUM_THREADS": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=wrong, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == min(
        threads, os.cpu_count() or 1
    )  # torch takes no more than there are


def test_turns_are_short_and_searches_for_garbage_rare(this_process: None) -> None:
    process.tune_interpreter()
    assert sys.getswitchinterval() < 0.001
    assert gc.get_threshold()[0] >= 10_000


async def test_replaced_weights_are_freed_although_they_were_frozen(
    replica: Any, language_model: Path
) -> None:
    versions = [{"checkpoint": str(language_model), "version": version} for version in (1, 2, 3)]
    await replica.reconfigure(versions[0])
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    for version in versions[1:]:
        old = replica.slot.engine
        await old.score(
            parse(
                RewardsRequest,
                {"scorer": "endogenous", "items": [{"prompt": [5], "response": [6]}]},
            )
        )
        old.itself = old  # a cycle, as a checkpoint's own code may make them
        references = [weakref.ref(old), weakref.ref(old.checkpoint.model)]
        del old
        await replica.reconfigure(version)
        assert [reference() for reference in references] == [None, None]
        assert gc.get_freeze_count() == pytest.approx(frozen, rel=0.2)


def test_our_log_goes_where_rays_goes_with_the_fields_that_it_has(
    replica: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rays, records = logging.getLogger("ray.serve"), []
    handler = logging.Handler(logging.INFO)
    handler.emit = records.append  # type: ignore[method-assign]
    rays.addHandler(handler)
    level = rays.level
    rays.setLevel(logging.INFO)
    try:
        logging.getLogger("tokenreward.http.guard").info("once", extra={"trace_id": "a"})
        logging.getLogger("tokenreward.http.guard").debug("never")
    finally:
        rays.removeHandler(handler)
        rays.setLevel(level)
    (record,) = records
    line = json.loads(JSONFormatter().format(record))
    assert (line["message"], line["trace_id"]) == ("once", "a")


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["type"].encode()})


def test_a_post_that_asks_for_a_websocket_is_answered_as_any_other(this_process: None) -> None:
    """uvicorn would hand it to a protocol that refuses its body and never answers."""
    refuse_websockets()
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    with web.serving(echo) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head + b"content-length: 2\r\n\r\nab")
            answer = b""
            while b"http\r\n" not in answer + b"\r\n":
                answer += connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200 OK")


def config(checkpoint: object, version: int) -> dict[str, Any]:
    return {"checkpoint": str(checkpoint), "version": version}


async def test_a_redeploy_that_cannot_be_loaded_keeps_what_serves(
    replica: Any, language_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="absent"):  # nothing serves yet
        await replica.reconfigure(config(tmp_path / "absent", 1))
    await replica.reconfigure(config(language_model, 1))
    engine = replica.slot.engine
    await replica.reconfigure(config(tmp_path / "absent", 2))
    assert replica.slot.engine is engine
    assert engine.version == 1
    follower = replica.follower
    assert "absent" in str(follower.status()["error"])
    shutil.copytree(language_model, tmp_path / "absent")
    await follower.catch_up()  # as Ray's health checks have it do
    assert (engine.version, follower.status()["error"]) == (2, None)
    await replica.reconfigure(config(language_model, 3))
    assert replica.slot.engine.version == 3


async def test_a_redeploy_of_the_version_that_serves_loads_other_weights(
    replica: Any, language_model: Path, tmp_path: Path
) -> None:
    await replica.reconfigure(config(language_model, 1))
    engine = replica.slot.engine
    await replica.reconfigure(config(language_model, 1))
    assert replica.slot.engine is engine
    shutil.copytree(language_model, tmp_path / "other")
    await replica.reconfigure(config(tmp_path / "other", 1))
    assert replica.slot.engine.settings.checkpoint == str(tmp_path / "other")


async def test_pushed_weights_are_the_floor_of_what_a_redeploy_loads(
    replica: Any, language_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(language_model, tmp_path / "pushed")
    replica.registry.record("lm", Weights(checkpoint=str(tmp_path / "pushed"), version=5))
    await replica.reconfigure(config(language_model, 1))  # as a replica that starts
    engine = replica.slot.engine
    assert (engine.version, engine.settings.checkpoint) == (5, str(tmp_path / "pushed"))
    for version in (3, 5):
        await replica.reconfigure(config(language_model, version))
        assert replica.slot.engine is engine
    await replica.reconfigure(config(language_model, 6))
    engine = replica.slot.engine
    assert (engine.version, engine.settings.checkpoint) == (6, str(language_model))
