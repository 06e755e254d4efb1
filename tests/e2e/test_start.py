"""Starts that do not end in a running service."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest


@pytest.fixture
def start(launching: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    started = []

    def begin(*arguments: str) -> Any:
        service = launching.launch(tmp_path / "out.txt", arguments)
        started.append(service)
        return service

    yield begin
    for service in started:
        launching.end(service)


def config_with(tmp_path: Path, checkpoint: Path, **settings: Any) -> str:
    deployment = {
        "name": "lm",
        "checkpoint": str(checkpoint),
        "task": "causal_lm",
        "num_cpus": 0.5,
        **settings,
    }
    file = tmp_path / "service.yaml"
    file.write_text(
        json.dumps({"deployments": [{**deployment, "scorers": [{"type": "endogenous"}]}]})
    )
    return str(file)


def test_checkpoint_that_cannot_be_loaded_ends_it_with_the_reason(
    start: Any, free_port: int, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    service = start("--config", config_with(tmp_path, tmp_path / "empty"), "--port", str(free_port))
    assert service.process.wait(timeout=180) == 1
    (line,) = [line for line in service.text.splitlines() if line.startswith("error: ")]
    assert "lm" in line
    assert str(tmp_path / "empty") in line
    assert "Traceback" not in service.text
    (last,) = [line for line in service.text.splitlines() if line.startswith("logs are kept in ")]
    logs = Path(last.removeprefix("logs are kept in "))
    assert any(
        str(tmp_path / "empty") in file.read_text()
        for file in (logs / "serve").glob("replica_lm_*")
    )
    shutil.rmtree(logs.parents[2])


def test_gpus_that_are_not_there_are_missed_and_not_waited_for(
    start: Any, free_port: int, tmp_path: Path
) -> None:
    config = config_with(tmp_path, tmp_path, num_replicas=1000, num_gpus=1)
    service = start("--config", config, "--port", str(free_port))
    assert service.process.wait(timeout=60) == 1
    assert "reserve 1000 GPUs" in service.text
    shutil.rmtree(Path(service.text.split("logs are kept in ")[1].strip()).parents[2])


def test_port_that_is_taken_is_said_at_once(start: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        service = start("--config", config_with(tmp_path, tmp_path), "--port", str(port))
        assert service.process.wait(timeout=30) == 1
    assert f"127.0.0.1 port {port}" in service.text
    assert "--port" in service.text
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGINT, "starting; "), (signal.SIGTERM, "loading lm, rm")]
)
def test_signal_during_the_start_stops_it(
    start: Any, config: Path, free_port: int, number: int, line: str
) -> None:
    service = start("--config", str(config), "--port", str(free_port))
    service.wait_for(line)
    time.sleep(1)
    tree, text = service.tree(), service.text
    service.process.send_signal(number) if number == signal.SIGTERM else service.interrupt(number)
    assert service.process.wait(timeout=5) == 0
    assert service.text == text
    time.sleep(0.5)
    assert not [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_service_that_is_killed_leaves_no_process_and_no_folder(
    start: Any, config: Path, free_port: int
) -> None:
    service = start("--config", str(config), "--port", str(free_port))
    service.wait_for("loading lm, rm")
    tree = service.tree()
    folder = Path(service.text.split("logs are in ")[1].split()[0]).parents[2]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    service.process.kill()
    service.process.wait()
    until = time.monotonic() + 10
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not folder.exists()
    time.sleep(0.5)  # the process that removed it ends, too
    assert not [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_config_that_cannot_be_served_is_refused_before_ray_starts(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("deployments: []\nprot: 8000\n")
    command = [sys.executable, "-m", "tokenreward.cli", "serve", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "unknown setting `prot`" in done.stderr
    assert "Traceback" not in done.stderr
