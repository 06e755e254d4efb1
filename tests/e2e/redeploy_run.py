"""Redeploys one replica again and again while callers ask it.

    python redeploy_run.py FOLDER

FOLDER has the checkpoints `lm`, `shape`, which is of another architecture, and `weights`, which is
of the same one as `shape`. What callers and operator saw goes to `outcome.json`. It judges nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from fakes import web
from tokenreward.config import parse_settings
from tokenreward.deployment import instance, plan

BUILD = "fakes.slow_load:build_replica"
ADMIN_KEY = "the-admin-key"
BODY = {"scorer": "endogenous", "items": [{"prompt": [5, 6], "response": [7, 8, 9]}]}
PATHS = ("/v1/rewards", "/d/lm/v1/rewards")
PATIENCE_S = 90.0


class Run:
    """A service of one replica, its callers, and what they saw.

    Args:
        folder: Where the checkpoints are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = web.free_port()
        # For each reply: when it came, its status and its version.
        self.replies: list[tuple[float, int, int | None]] = []
        self.outcome: dict[str, Any] = {}
        (folder / "admins").write_text(f"{ADMIN_KEY}\n")

    def config(self, checkpoint: str, version: int) -> dict[str, Any]:
        """What Ray is given, with replicas whose second load is slow."""
        config = plan.serve_config(self.settings(checkpoint, version), is_cluster=False)
        config["applications"][1]["import_path"] = BUILD
        return config

    def settings(self, checkpoint: str, version: int) -> Any:
        """The settings with these weights."""
        deployment = {
            "name": "lm",
            "checkpoint": str(self.folder / checkpoint),
            "version": version,
            "task": "causal_lm",
            "num_cpus": 0.5,
            "scorers": [{"type": "endogenous"}],
        }
        return parse_settings(
            {
                "port": self.port,
                "admin_keys_file": str(self.folder / "admins"),
                "deployments": [deployment],
            }
        )

    async def call_forever(self, client: httpx.AsyncClient, path: str) -> None:
        """Asks again as soon as there is a reply."""
        while True:
            answer = await client.post(path, json=BODY)
            version = answer.json().get("version")
            self.replies.append((time.monotonic(), answer.status_code, version))

    async def redeploy(self, client: httpx.AsyncClient, checkpoint: str, version: int) -> None:
        """Declares weights, waits until they serve or are refused, and notes what happened."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        ray = _get_global_client()
        assert ray is not None
        began, num_before = time.monotonic(), len(self.replies)
        config = ServeDeploySchema.model_validate(self.config(checkpoint, version))
        await asyncio.to_thread(ray.deploy_apps, config)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                state = await self.weights(client)
                replica = state["replicas"][0] if state["replicas"] else {}
                if replica.get("version") == version or replica.get("error"):
                    break
                await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
        await asyncio.sleep(2.0)
        replies = self.replies[num_before - 1 :]
        times = [at for at, _, _ in replies]
        self.outcome[checkpoint] = {
            "state": state,
            "seconds": seconds,
            "longest_gap_s": max(b - a for a, b in itertools.pairwise(times)),
            "statuses": sorted({status for _, status, _ in replies}),
            "versions": [version for _, _, version in replies],
        }

    async def weights(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """What the deployment is to serve and serves."""
        key = {"authorization": f"Bearer {ADMIN_KEY}"}
        answer = await client.get("/v1/deployments/lm/weights", headers=key)
        return answer.json() if answer.status_code == 200 else {"replicas": []}

    async def ask_and_redeploy(self, url: str) -> None:
        """All redeploys, one after the other, with callers on each route."""
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            callers = [asyncio.create_task(self.call_forever(client, path)) for path in PATHS * 2]
            await asyncio.sleep(2.0)
            for version, checkpoint in enumerate(("shape", "weights", "absent"), start=2):
                await self.redeploy(client, checkpoint, version)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)


def main(folder: Path) -> None:
    run = Run(folder)
    first, config = run.settings("lm", 1), run.config("lm", 1)
    instance.serve_config = lambda *_, **__: config  # type: ignore[attr-defined]
    service = instance.Instance(first, lambda line: print(line, flush=True))
    try:
        service.start()
        asyncio.run(run.ask_and_redeploy(plan.internal_url(first)))
        logs = list(service.logs.glob("serve/replica_lm*.log"))
        run.outcome["log"] = "".join(log.read_text() for log in logs)
        (folder / "outcome.json").write_text(json.dumps(run.outcome))
    finally:
        service.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
