"""What a lone request takes beyond its pass through the model, beside what an empty application
takes in our place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from bench import driver
from bench.cores import Cores
from bench.figure import Figure
from bench.rivals import empty_app
from bench.server import free_port, python, serving
from bench.service import MODES, check, set_up, warm_up
from bench.sides import Numbers

TARGET_MS = {"laptop": 8.0, "cluster": 4.0}
NUM_EMPTY = 60  # requests


def added(*, rounds: int, mode: str, num_groups: int = 5) -> Iterator[Figure]:
    """One figure per kind of number; the rival's is what no application behind the same proxy can
    be below."""
    del rounds  # each request is one
    with set_up(num_groups, mode) as stage:
        kinds: tuple[Numbers, ...] = ("endogenous", "reward_model")
        taken, bodies = {}, []
        for numbers in kinds:
            side, expected = stage.ours(numbers), stage.expected(numbers)
            warm_up(stage, side, expected)
            bodies = side.bodies(stage.items)
            load = driver.run(side.url, bodies, concurrency=1, cores=stage.cores.rest)
            check(side, load.replies, stage.items, expected)
            taken[numbers] = added_ms(load)
    empty = _empty(bodies, mode=mode)
    for numbers, ms in taken.items():
        name = f"added latency p50, concurrency 1, {numbers}, {mode} mode"
        note = (
            f"p90 {np.percentile(ms, 90):.3g} ms, {len(ms)} requests; rival: an empty application"
        )
        yield Figure(name, median(ms), median(empty), median(ms), TARGET_MS[mode], "ms", True, note)


def added_ms(load: driver.Load) -> list[float]:
    """What each request took, less the time of its pass as its reply has it."""
    inside = [json.loads(reply)["timing"]["compute_s"] for reply in load.replies]
    return [1000 * (took - each) for took, each in zip(load.latencies_s, inside, strict=True)]


def _empty(bodies: Sequence[str], *, mode: str) -> list[float]:
    """The same of the empty application. It comes when our service is gone: there is room for one
    HAProxy."""
    cores, port = Cores.here(), free_port()
    url = f"http://127.0.0.1:{port}/{empty_app.NAME}"
    sent = [bodies[index % len(bodies)] for index in range(NUM_EMPTY)]
    with tempfile.TemporaryDirectory(prefix="tokenreward-bench-") as folder:
        command = python("bench.rivals.empty_app", str(port))
        with serving(
            command, ready_url=url, log=Path(folder) / "empty.txt", env=MODES[mode]
        ) as server:
            server.pin(lambda: driver.run(url, sent[:16], concurrency=4, cores=cores.rest), cores)
            return added_ms(driver.run(url, sent, concurrency=1, cores=cores.rest))
