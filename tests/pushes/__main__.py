"""`make pushes`: 200 pushes to two replicas of a demo model under load, some of which are killed.

    python -m pushes [--proxy haproxy] [--gateways 2] [--pushes 20]

It exits with 1 if a request failed, a reply was of two versions, or rewards were not those of a
fresh engine. Now and then two pushes are sent at the same moment. With two gateways the proxy
chooses one for each push; both must have had requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from fakes import namespace, nodes
from fakes.serve import ServedPolicy, demo
from pushes.run import Outcome, Pushes

SETTINGS = {
    "name": "sft",
    "checkpoint": "demo:sft",
    "task": "causal_lm",
    "scorers": [{"type": "logprob"}],
    "num_replicas": 2,
    "num_cpus": 0.5,
}
TOGETHER = 0.2
CHECKPOINTS = ("demo:sft", "demo:dpo")
INSIDE = "--inside"
_ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make pushes", description=__doc__)
    parser.add_argument("--pushes", type=int, default=200)
    parser.add_argument("--kill-every", type=int, default=25, help="pushes between two kills")
    parser.add_argument("--gateways", type=int, default=1, help="replicas of the gateway")
    parser.add_argument("--proxy", choices=("python", "haproxy"), default="python")
    parser.add_argument("--seed", type=int, default=0, help="of which pushes are sent together")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.proxy == "haproxy" and not args.inside:
        return _in_a_namespace([*sys.argv[1:], INSIDE])
    with tempfile.TemporaryDirectory() as folder:
        keys, config = Path(folder) / "admins", Path(folder) / "service.yaml"
        keys.write_text("sesame\n")
        settings = {
            "deployments": [SETTINGS],
            "admin_keys_file": str(keys),
            "gateway_num_replicas": args.gateways,
        }
        config.write_text(json.dumps(settings))
        with demo(Path(folder), "--config", str(config)) as service:
            outcome = asyncio.run(_run(service, args))
    print("\n".join(outcome.lines()))
    print("\n".join(outcome.failures[:10]))
    is_right = not (outcome.failures or outcome.mixed or outcome.wrong)
    is_whole = len(set(outcome.final)) == 1 and len(outcome.gateways) == args.gateways
    return int(not (is_right and is_whole))


def _in_a_namespace(arguments: list[str]) -> int:
    """Runs the same with HAProxy, whose ports and files others on this machine may have."""
    modules = os.pathsep.join(str(_ROOT / name) for name in ("service", "clients", "tests"))
    environment = {**os.environ, "PYTHONPATH": modules, **nodes.environment()}
    command = namespace.command([sys.executable, "-m", "pushes", *arguments])
    return subprocess.run(command, env=environment, check=False).returncode


async def _run(service: ServedPolicy, args: argparse.Namespace) -> Outcome:
    def kill() -> None:
        name = "ServeReplica:sft"
        replicas: list[psutil.Process] = [
            each for each in service.root.children(recursive=True) if name in each.name()
        ]
        random.choice(replicas).kill()

    settings: dict[str, Any] = {name: SETTINGS[name] for name in ("name", "task", "scorers")}
    pushes = Pushes(
        service.url,
        settings,
        CHECKPOINTS,
        admin_key="sesame",
        together=TOGETHER,
        seed=args.seed,
    )
    await pushes.run(args.pushes, kill=kill, kill_every=args.kill_every)
    return pushes.outcome


if __name__ == "__main__":
    sys.exit(main())
