"""Runs every arm with every seed against one service, and draws what came of it.

    PYTHONPATH=tests python -m learning --output docs/learning

Two runs at a time, one thread each. The numbers go to `runs.json`, a plot per reward
to `rm.svg` and `logprob.svg`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from fakes.serve import running
from learning.figure import plot, table

REWARDS, ARMS = ("logprob", "rm"), ("scalar", "dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("build/learning"))
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=["rm"])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm of each reward")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--url", help="a service that runs; by default one is started")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if options.url is not None:
            runs = run_all(options.url, Path(folder), options)
        else:
            with running(Path(folder)) as service:
                runs = run_all(service.url, Path(folder), options)
    minutes = (time.monotonic() - began) / 60
    (options.output / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    for reward in options.rewards:
        chosen = [run for run in runs if run["reward"] == reward]
        (options.output / f"{reward}.svg").write_text(plot(chosen))
        print(f"{reward}\n{table(chosen)}")
    print(f"{minutes:.1f} minutes")


def run_all(url: str, folder: Path, options: Any) -> list[dict[str, Any]]:
    """The evaluations of each run: `{"reward", "arm", "seed", "evaluation": [...]}`."""

    def run(job: tuple[int, str, str]) -> dict[str, Any]:
        seed, reward, arm = job
        file = folder / f"{reward}-{arm}-{seed}.json"
        names = [reward, arm, str(seed), url, str(file)]
        command = [sys.executable, "-m", "learning.arms", *names]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, str(options.steps)], env=environment, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        evaluation = json.loads(file.read_text())
        print(reward, arm, seed, evaluation[-1], flush=True)
        return {"reward": reward, "arm": arm, "seed": seed, "evaluation": evaluation}

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(run, product(range(options.seeds), options.rewards, ARMS)))


if __name__ == "__main__":
    main()
