"""`tokenreward serve` with the demo's policy, its log-probs and entropy, and its reward model, from
one replica each."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fakes import web

START_S = 240.0
DEPLOYMENTS: list[dict[str, Any]] = [
    {
        "name": "sft",
        "checkpoint": "demo:sft",
        "task": "causal_lm",
        "scorers": [{"type": "logprob"}, {"type": "entropy"}],
    },
    {
        "name": "rm",
        "checkpoint": "demo:rm",
        "task": "reward_model",
        "scorers": [{"type": "reward_model"}, {"type": "attention_dense"}],
    },
]


@dataclass(frozen=True)
class ServedPolicy:
    """Where it answers, and its processes."""

    url: str
    root: psutil.Process

    def kill(self, name: str) -> None:
        """Ends each of its processes of that name at once: `ServeReplica:sft`, `ProxyActor`."""
        victims = [each for each in self.root.children(recursive=True) if name in each.name()]
        assert victims, name
        for victim in victims:
            victim.kill()


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[ServedPolicy]:
    """The service meanwhile, its deployments with these settings. Config and output are written to
    the folder."""
    deployments = [{**each, "num_cpus": 0.5, **settings} for each in DEPLOYMENTS]
    config = folder / "service.yaml"
    config.write_text(json.dumps({"deployments": deployments}))
    with demo(folder, "--config", str(config)) as service:
        yield service


@contextmanager
def demo(folder: Path, *flags: str) -> Iterator[ServedPolicy]:
    """`tokenreward serve` with these flags meanwhile: without any, all of the demo's models. Output
    is written to the folder."""
    output, port = folder / "serve.txt", web.free_port()
    command = [sys.executable, "-m", "tokenreward.cli", "serve", *flags]
    with output.open("w") as sink:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=sink, stderr=sink, start_new_session=True
        )
    root = psutil.Process(process.pid)
    try:
        until = time.monotonic() + START_S
        while "try: curl" not in output.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(output.read_text())
            time.sleep(0.2)
        yield ServedPolicy(f"http://127.0.0.1:{port}", root)
    finally:
        tree = [root]
        with suppress(psutil.NoSuchProcess):  # it never began: its own words are the error
            tree += root.children(recursive=True)
        process.terminate()
        psutil.wait_procs(tree, timeout=30)
        for child in psutil.wait_procs(tree, timeout=0)[1]:
            child.kill()
        process.wait()
