"""The engine without a service: our layout over batches up to the budget, on the checkpoint folders
that are served.

What it gives is also what every server's numbers are held to.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import workload
from bench.cores import Cores
from bench.sides import DEPLOYMENT, TASK, Numbers
from bench.timing import Taken
from bench.workload import Item
from tokenreward.checkpoints.checkpoint import load_checkpoint
from tokenreward.contract import Needs, Outputs
from tokenreward.forward.probe import choose_layout
from tokenreward.settings import DeploymentSettings

PROBED = {"lm": Needs(frozenset({1.0})), "rm": Needs(values=True)}
NEEDS: dict[Numbers, Needs] = {
    "endogenous": Needs(frozenset({1.0})),
    "logprob": Needs(frozenset({1.0})),
    "reward_model": Needs(pooled=True),
    "values": Needs(values=True),
}


class Offline:
    """One checkpoint folder, in this process, on the core and with the number of threads that a
    replica has."""

    def __init__(self, folder: Path, deployment: str, cores: Cores) -> None:
        self._cores = cores
        task: Any = TASK[deployment]
        scorer = {"type": "endogenous" if task == "causal_lm" else "reward_model"}
        given = {"name": deployment, "checkpoint": str(folder), "task": task, "scorers": [scorer]}
        checkpoint = load_checkpoint(DeploymentSettings.model_validate(given))
        self._layout = choose_layout(checkpoint, PROBED[deployment], say=lambda line: None)

    def taken(self, items: list[Item], numbers: Numbers) -> Taken:
        """Scoring them all, pinned as a replica is."""
        batches = workload.budgeted(workload.rows(items, NEEDS[numbers]))
        free = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores.compute)
        try:
            began, cpu_began = time.perf_counter(), time.process_time()
            for batch in batches:
                self._layout.run(batch)
            return Taken(time.perf_counter() - began, time.process_time() - cpu_began)
        finally:
            os.sched_setaffinity(0, free)

    def numbers(self, items: list[Item], numbers: Numbers) -> list[np.ndarray]:
        """One vector per item."""
        batches = workload.budgeted(workload.rows(items, NEEDS[numbers]))
        return [
            _vector(outputs, numbers) for batch in batches for outputs in self._layout.run(batch)
        ]


class Both:
    """The language model and the reward model, each loaded when it is first asked for."""

    def __init__(self, folders: dict[str, Path], cores: Cores) -> None:
        self._folders, self._cores = folders, cores
        self._loaded: dict[str, Offline] = {}

    def of(self, numbers: Numbers) -> Offline:
        deployment = DEPLOYMENT[numbers]
        if deployment not in self._loaded:
            self._loaded[deployment] = Offline(self._folders[deployment], deployment, self._cores)
        return self._loaded[deployment]


def _vector(outputs: Outputs, numbers: Numbers) -> np.ndarray:
    if numbers == "reward_model":
        return np.atleast_1d(np.float64(outputs.pooled))
    if numbers == "values":
        return np.asarray(outputs.values, dtype=np.float64)[1:]
    lse = outputs.lse[1.0].astype(np.float64)
    return np.asarray(outputs.chosen, dtype=np.float64) - (
        lse[1:] if numbers == "endogenous" else lse[:-1]
    )
