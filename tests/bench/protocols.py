"""Other programs' protocols over the native route: one-sample requests from 64 callers, of the same
scorer on the same samples, in turns.

The demo's models answer. They are tiny, so a protocol's own work weighs more here than it does with
any real model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import driver
from bench.cores import Cores
from bench.figure import Figure
from bench.protocol_shapes import DEPLOYMENTS, SHAPES, DemoSample, Shape, samples
from bench.server import Server, free_port, python, serving
from bench.service import AGREE, CONCURRENCY, MODES
from bench.timing import in_turns
from tokenreward.wire.paths import REWARDS_PATH

GROUP = 8  # samples for each group that the command line asks for
TARGET = 0.9
WARM_UP = 128  # samples


def over_native(*, rounds: int, mode: str, num_groups: int = 64) -> Iterator[Figure]:
    """A figure per shape of each protocol, straight to the deployment that answers."""
    found, cores, port = samples(GROUP * num_groups), Cores.here(), free_port()
    lengths = sorted(len(sample.ids) for sample in found)
    print(
        f"  {len(found)} samples of the demo, tokens median {lengths[len(lengths) // 2]}, longest "
        f"{lengths[-1]}; {CONCURRENCY} one-sample requests in flight; {mode} mode; "
        f"{cores.describe()}",
        flush=True,
    )
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="tokenreward-bench-") as name:
        folder = Path(name)
        config = folder / "service.yaml"
        config.write_text(json.dumps({"port": port, "deployments": DEPLOYMENTS}))
        command = python("tokenreward.cli", "serve", "--config", str(config))
        log = folder / "ours.txt"
        with serving(command, ready_url=f"{url}/readyz", log=log, env=MODES[mode]) as server:
            for shape in SHAPES:
                yield _compared(shape, found, server, url, cores=cores, how=(rounds, mode))


def _compared(
    shape: Shape,
    found: list[DemoSample],
    server: Server,
    url: str,
    *,
    cores: Cores,
    how: tuple[int, str],
) -> Figure:
    """Samples per second in the protocol's shape and natively: medians of the rounds."""
    rounds, mode = how
    sides = {
        "protocol": (shape.path, [json.dumps(shape.body(sample)) for sample in found]),
        "native": (REWARDS_PATH, [json.dumps(shape.native_body(sample)) for sample in found]),
    }

    def load(path: str, bodies: list[str]) -> driver.Load:
        address = f"{url}/d/{shape.deployment}{path}"
        return driver.run(address, bodies, concurrency=CONCURRENCY, cores=cores.rest)

    def warm_up() -> None:
        replies = [load(path, bodies[:WARM_UP]).replies for path, bodies in sides.values()]
        check(shape, found[:WARM_UP], *replies)

    server.pin(warm_up, cores)
    functions = {
        name: partial(_taken, server, partial(load, *side)) for name, side in sides.items()
    }
    rounds_taken = in_turns(functions, rounds=rounds)
    pairs = list(zip(rounds_taken["protocol"], rounds_taken["native"], strict=True))
    for (ours, _), (native, _) in pairs:
        check(shape, found, ours.replies, native.replies)
    seconds = {name: [load.seconds for load, _ in runs] for name, runs in rounds_taken.items()}
    note = "; ".join(
        f"{name} {min(seconds[name]):.3g}-{max(seconds[name]):.3g} s, CPU "
        f"{1000 * median(cpu_s for _, cpu_s in runs) / len(found):.3g} ms each"
        for name, runs in rounds_taken.items()
    )
    return Figure(
        f"{shape.name} / native, {mode} mode",
        len(found) / median(seconds["protocol"]),
        len(found) / median(seconds["native"]),
        # Of rounds, whose two runs follow each other: a busy machine is busy for both.
        median(native.seconds / ours.seconds for (ours, _), (native, _) in pairs),
        TARGET,
        "req/s",
        note=note,
    )


def _taken(server: Server, load: Callable[[], driver.Load]) -> tuple[driver.Load, float]:
    """The load, and the CPU seconds that all of the service's processes took for it."""
    began = server.cpu_seconds()
    return load(), server.cpu_seconds() - began


def check(
    shape: Shape, found: list[DemoSample], replies: list[str], native_replies: list[str]
) -> None:
    """No sample is lost, and its numbers are the native ones.

    They are of other batches, whose matrix products round in another way.
    """
    for sample, reply, native_reply in zip(found, replies, native_replies, strict=True):
        numbers: Any = shape.numbers(json.loads(reply), sample)
        ours = np.asarray(numbers, dtype=np.float64).reshape(-1)
        native = shape.native_numbers(json.loads(native_reply), sample)
        if ours.shape != native.shape or not np.abs(ours - native).max() < AGREE:
            raise AssertionError(f"{shape.name}: {ours} and natively {native}")
