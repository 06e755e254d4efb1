"""The whole service as a user starts it: `tokenreward serve` in a process group of its own, as a
terminal would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fakes import tiny, web

START_S = 240.0
ADMIN_KEY = "the-admin-key"


@dataclass
class Service:
    """A running `tokenreward serve`."""

    process: subprocess.Popen[str]
    url: str
    output: Path
    started_s: float = 0.0

    @property
    def text(self) -> str:
        return self.output.read_text()

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """What Ctrl-C does: the signal goes to the whole group."""
        os.killpg(self.process.pid, number)

    def wait_for(self, line: str, seconds: float = START_S) -> None:
        until = time.monotonic() + seconds
        while line not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < until, self.text
            time.sleep(0.1)


def launch(output: Path, arguments: Sequence[str], *, port: int = 0) -> Service:
    command = [sys.executable, "-m", "tokenreward.cli", "serve", *arguments]
    modules = os.pathsep.join(
        [str(Path(tiny.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {
        **os.environ,
        "PYTHONPATH": modules,
        "OMP_NUM_THREADS": "7",
    }  # what replicas set for themselves wins
    how = {"stderr": subprocess.STDOUT, "start_new_session": True, "text": True, "env": environment}
    with output.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, **how)  # type: ignore[call-overload]
    return Service(process, f"http://127.0.0.1:{port}", output)


def end(service: Service) -> None:
    if service.process.poll() is None:
        for process in reversed(service.tree()):
            process.kill()
        service.process.wait()


class Launching:
    """For tests that start one of their own."""

    launch = staticmethod(launch)
    end = staticmethod(end)


@pytest.fixture
def launching() -> type[Launching]:
    return Launching


@pytest.fixture
def free_port() -> int:
    return web.free_port()


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two deployments, one of them twice."""
    folder = tmp_path_factory.mktemp("e2e")
    tiny.save(folder / "lm")
    tiny.save(folder / "lm-2", seed=2)
    (folder / "admins").write_text(f"{ADMIN_KEY}\n")
    tiny.save(folder / "rm", task="reward_model")
    lm = [{"type": "endogenous"}, {"type": "constant", "name": "one"}]
    two = {"type": "constant", "name": "two", "options": {"value": 2.0}}
    rm = [{"type": "reward_model"}, two, {"type": "fakes.process_facts:Scorer", "name": "facts"}]
    deployments = [
        {
            "name": "lm",
            "checkpoint": "lm",
            "task": "causal_lm",
            "num_replicas": 2,
            "num_cpus": 0.5,
            "scorers": lm,
        },
        {"name": "rm", "checkpoint": "rm", "task": "reward_model", "num_cpus": 0.5, "scorers": rm},
    ]
    file = folder / "service.yaml"
    file.write_text(
        json.dumps(  # JSON is YAML
            {
                "deployments": deployments,
                "max_body_bytes": 1_000_000,
                "admin_keys_file": str(folder / "admins"),
            }
        )
    )
    return file


@pytest.fixture(scope="session")
def service(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests; the last one stops it."""
    port, began = web.free_port(), time.monotonic()
    output = tmp_path_factory.mktemp("output") / "serve.txt"
    service = launch(output, ["--config", str(config), "--port", str(port)], port=port)
    try:
        service.wait_for("try: curl")
        service.started_s = time.monotonic() - began
        yield service
    finally:
        end(service)
