"""The service on three machines, brought up by the commands of docs/cluster.md."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from fakes.pages import ROOT, code_blocks, page
from nodes.switch import Machine, open_switch

KEY = "sesame"
ADMIN_KEY = "barley"
GATEWAY = "Gateway"
NUM_SFT, NUM_RM = 3, 2
_READY_S = 180.0
_REPLICA = "ServeReplica"
_MOST_MOVES = 12


def commands() -> list[str]:
    """The lines of the page's block."""
    (block,) = code_blocks(page("docs/cluster.md"), "bash")
    return [line for line in block.splitlines() if line]


class Cluster:
    """Three machines, on the first of which the head is.

    Args:
        folder: For all that the commands name. Its path is short, as Ray puts no sockets there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prepare()
        open_switch()
        modules = os.pathsep.join(str(ROOT / name) for name in ("service", "clients", "tests"))
        path = os.pathsep.join(
            [str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": path,
            "PYTHONPATH": modules,
            "OMP_NUM_THREADS": "1",
        }
        # GCS keeps what it knows in a folder of the head. It is the operator's to say where.
        kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}
        self.machines = [
            Machine(number, folder, environment | (kept if number == 1 else {}))
            for number in (1, 2, 3)
        ]
        self.head, *self.others = self.machines

    @property
    def urls(self) -> list[str]:
        """The addresses of all nodes."""
        return [f"http://{machine.address}:8000" for machine in self.machines]

    def bring_up(self) -> None:
        """Takes the page's way: each line where its comment says."""
        environment, token, head, other, schema, deploy, ready = commands()
        self._environment = environment
        self.head.run(token)
        for machine in self.others:
            target = machine.home / ".ray"
            target.mkdir(exist_ok=True)
            shutil.copy(self.head.home / ".ray" / "auth_token", target)
        self._run(self.head, head)
        self._join = other.replace("HEAD", self.head.address)
        for machine in self.others:
            self._run(machine, self._join)
        self._run(self.head, schema)
        self._run(self.head, deploy)
        for machine in self.machines:
            self._run(machine, ready.replace("NODE", machine.address), timeout_s=_READY_S + 300)
        self.wait_whole()

    def bring_back(self, machine: Machine) -> None:
        """Starts a machine again, or plugs it in again, has it join the cluster by the line by
        which it joined before, and waits until it serves.

        Its replicas have long been started elsewhere. Ray runs no proxy on a node without any.
        """
        if not machine.is_up:
            machine.boot()
        machine.plug_cable()
        self._run(machine, self._join)
        self.bring("sft", machine)

    def bring(self, deployment: str, machine: Machine) -> None:
        """Ends replicas of a deployment, or of the gateway, one by one until one of those that take
        their places is on a machine."""
        for _ in range(_MOST_MOVES):
            self.wait_whole()
            if machine.processes(f"{_REPLICA}:{deployment}"):
                return
            self.replicas(deployment)[0].kill()
        raise RuntimeError(f"{machine.name} gets no replica of {deployment}")

    def roles(self, machine: Machine) -> list[str]:
        """The names of the deployments, or of the gateway, of the replicas on a machine."""
        names = [process.cmdline()[0] for process in machine.processes(_REPLICA)]
        return sorted(name.removeprefix(f"ray::{_REPLICA}:").partition(":")[0] for name in names)

    def wait_whole(self) -> None:
        """Waits until every replica answers, and every node that has one is ready."""
        until = time.monotonic() + _READY_S
        while missing := self._missing():
            if time.monotonic() > until:
                raise RuntimeError(f"the cluster does not become whole: {missing}")
            time.sleep(0.5)

    def _missing(self) -> str:
        """What is not there yet; "" if all is."""
        headers = {"authorization": f"Bearer {KEY}"}
        for machine, url in zip(self.machines, self.urls, strict=True):
            if not machine.processes(_REPLICA):
                continue
            try:
                status = httpx.get(f"{url}/readyz", timeout=10).status_code
                text = httpx.get(f"{url}/metrics", headers=headers, timeout=10).text
            except httpx.HTTPError as error:
                return f"{url}: {type(error).__name__}"
            lines = set(text.splitlines())
            for name, num_replicas in (("sft", NUM_SFT), ("rm", NUM_RM)):
                label = f'model_version{{deployment="{name}"'
                count = sum(label in line for line in lines)
                if (status, count) != (200, num_replicas):
                    return f"{url}: /readyz says {status}, {name} has {count} replicas"
        num_gateways = len(self.replicas(GATEWAY))
        return "" if num_gateways == 2 else f"{num_gateways} gateways"

    def replicas(self, deployment: str) -> list[Any]:
        """The processes of a deployment's replicas, or of the gateway's."""
        name = f"{_REPLICA}:{deployment}"
        return [each for machine in self.machines for each in machine.processes(name)]

    def _run(self, machine: Machine, line: str, *, timeout_s: float = 180.0) -> None:
        machine.run(f"cd {self._folder}\n{self._environment}\n{line}", timeout_s=timeout_s)

    def _prepare(self) -> None:
        """All that the page's commands name."""
        folder = self._folder
        (folder / "deploy").symlink_to(ROOT / "deploy")
        (folder / "keys").write_text(KEY + "\n")
        (folder / "admins").write_text(ADMIN_KEY + "\n")
        (folder / "bin").mkdir()
        (folder / "gcs").mkdir()
        tokenreward = folder / "bin" / "tokenreward"
        tokenreward.write_text(f'#!/bin/sh\nexec {sys.executable} -m tokenreward.cli "$@"\n')
        tokenreward.chmod(0o755)
        sft: dict[str, Any] = {"name": "sft", "checkpoint": "demo:sft", "task": "causal_lm"}
        rm: dict[str, Any] = {"name": "rm", "checkpoint": "demo:rm", "task": "reward_model"}
        # No node has all replicas of a deployment: they would have to be loaded anew when it dies.
        sft |= {"num_replicas": NUM_SFT, "max_replicas_per_node": NUM_SFT - 1}
        rm |= {"num_replicas": NUM_RM, "max_replicas_per_node": NUM_RM - 1}
        deployments = [
            {**sft, "scorers": [{"type": "endogenous"}]},
            {**rm, "scorers": [{"type": "reward_model"}]},
        ]
        service = {
            "host": "0.0.0.0",  # noqa: S104
            "api_keys_file": str(folder / "keys"),
            "admin_keys_file": str(folder / "admins"),
            "gateway_num_replicas": 2,
            "deployments": [{**each, "num_cpus": 0.25} for each in deployments],
        }
        (folder / "rewards.yaml").write_text(json.dumps(service))  # JSON is YAML
