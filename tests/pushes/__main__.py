"""`make pushes`: 200 pushes to two replicas of a demo model under load, some of which are killed.

It exits with 1 if a request failed, a reply was of two versions, or rewards were not those of a
fresh engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path

from fakes.serve import demo
from pushes.run import run

SETTINGS = {
    "name": "sft",
    "checkpoint": "demo:sft",
    "task": "causal_lm",
    "scorers": [{"type": "logprob"}],
    "num_replicas": 2,
    "num_cpus": 0.5,
}
CHECKPOINTS = ("demo:sft", "demo:dpo")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make pushes", description=__doc__)
    parser.add_argument("--pushes", type=int, default=200)
    parser.add_argument("--kill-every", type=int, default=25, help="pushes between two kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys, config = Path(folder) / "admins", Path(folder) / "service.yaml"
        keys.write_text("sesame\n")
        config.write_text(json.dumps({"deployments": [SETTINGS], "admin_keys_file": str(keys)}))
        with demo(Path(folder), "--config", str(config)) as service:

            def kill() -> None:
                name = "ServeReplica:sft"
                replicas = [
                    each for each in service.root.children(recursive=True) if name in each.name()
                ]
                random.choice(replicas).kill()

            outcome = asyncio.run(
                run(
                    service.url,
                    {name: SETTINGS[name] for name in ("name", "task", "scorers")},
                    CHECKPOINTS,
                    admin_key="sesame",
                    num_pushes=args.pushes,
                    kill=kill,
                    kill_every=args.kill_every,
                )
            )
    print("\n".join(outcome.lines()))
    print("\n".join(outcome.failures[:10]))
    is_right = not (outcome.failures or outcome.mixed or outcome.wrong)
    return int(not is_right or len(set(outcome.final)) != 1)


if __name__ == "__main__":
    sys.exit(main())
