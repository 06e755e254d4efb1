"""The service's figures: over the engine offline, and over other servers of the same model.

Wall time, because waiting is what a service can waste; every server has one thread to compute with,
on a core of its own, and the load comes from another.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import driver, sides, workload
from bench.cores import Cores
from bench.figure import Figure, Skipped
from bench.offline import Both
from bench.rivals import vllm_cpu
from bench.server import Server, ServerFailed, free_port, python, serving
from bench.sides import DEPLOYMENT, TASK, Numbers, Side
from bench.timing import Taken, in_turns
from bench.workload import Item
from fakes import nodes

CONCURRENCY = 64
VOCAB_SIZE = 32_000
AGREE = 5e-4  # of numbers up to some 15; a wrong layout is off by more than 0.1
WARM_UP = 16  # items
START_S = 480.0  # vLLM compiles a model when it sees it for the first time
SCORERS: dict[str, list[dict[str, Any]]] = {
    "lm": [
        {"type": "endogenous"},
        {"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}},
    ],
    "rm": [{"type": "reward_model"}],
}
# What `tokenreward serve` is started with. `cluster`: as a node of one, behind HAProxy.
MODES: dict[str, dict[str, str]] = {"laptop": {}, "cluster": nodes.environment()}
SHAPE: dict[str, int] = {}  # changes to the models' shape, for trying the bench out


@dataclass(frozen=True)
class Stage:
    """Where everything of one suite stands: checkpoint folders, the items, the truth about them,
    our own service."""

    folder: Path
    folders: dict[str, Path]
    items: list[Item]
    cores: Cores
    offline: Both
    mode: str
    server: Server
    url: str

    def ours(self, numbers: Numbers) -> Side:
        return sides.ours(self.server, self.url, numbers)

    def load(self, side: Side, items: list[Item], *, concurrency: int = CONCURRENCY) -> driver.Load:
        return driver.run(
            side.url, side.bodies(items), concurrency=concurrency, cores=self.cores.rest
        )

    def expected(self, numbers: Numbers) -> list[np.ndarray]:
        return self.offline.of(numbers).numbers(self.items, numbers)


def over_offline(*, rounds: int, mode: str, num_groups: int = 16) -> Iterator[Figure]:
    """The whole of the service over the engine alone, on the same items."""
    with set_up(num_groups, mode) as stage:
        kinds: tuple[Numbers, ...] = ("endogenous", "reward_model")
        for numbers in kinds:
            side, expected = stage.ours(numbers), stage.expected(numbers)
            warm_up(stage, side, expected)
            functions = {
                "service": partial(_taken, stage, side, expected),
                "offline": partial(stage.offline.of(numbers).taken, stage.items, numbers),
            }
            name = f"service / engine offline, {numbers}, {mode} mode"
            yield _compared(name, stage, functions, rounds=rounds, target=0.9)


def over_serve_rm(*, rounds: int, mode: str, num_groups: int = 12) -> Iterator[Figure | Skipped]:
    """Over a blocking server with a batch per request."""
    yield from _over_python("serve_rm", sides.serve_rm, "/health", 4.0, (rounds, mode, num_groups))


def over_litserve(
    *, rounds: int, mode: str, num_groups: int = 12, batch_size: int = 8
) -> Iterator[Figure | Skipped]:
    """Over LitServe. Of its batch sizes from 8 to 32, 8 is the fastest here: it pads least."""
    how = (rounds, mode, num_groups)
    yield from _over_python("lit_server", sides.lit_server, "/health", 3.0, how, str(batch_size))


def over_vllm(*, rounds: int, mode: str, num_groups: int = 12) -> Iterator[Figure | Skipped]:
    """Over vLLM's CPU build, where it can be had."""
    kinds: tuple[Numbers, ...] = ("values", "logprob")
    try:
        interpreter = vllm_cpu.installed()
    except vllm_cpu.NotInstalled as error:
        for numbers in kinds:
            yield Skipped(f"service / vLLM, {numbers}, {mode} mode", str(error))
        return
    with set_up(num_groups, mode) as stage:
        for numbers in kinds:
            name = f"service / vLLM, {numbers}, {mode} mode"
            deployment, port = DEPLOYMENT[numbers], free_port()
            folder = vllm_cpu.known_as(deployment, stage.folders[deployment])
            command = vllm_cpu.command(interpreter, folder, TASK[deployment], port)
            url = f"http://127.0.0.1:{port}"
            try:
                with _serving(stage, "vllm", command, f"{url}/health", vllm_cpu.ENV) as server:
                    yield _against(
                        name, stage, numbers, sides.vllm(server, url, numbers), (rounds, 1.3)
                    )
            except ServerFailed as error:
                yield Skipped(name, error.brief)


def _over_python(
    module: str,
    side: Callable[[Server, str], Side],
    ready: str,
    target: float,
    how: tuple[int, str, int],
    *arguments: str,
) -> Iterator[Figure | Skipped]:
    """A rival that is a module of ours and computes the same numbers; skipped where its library is
    not installed."""
    rounds, mode, num_groups = how
    with set_up(num_groups, mode) as stage:
        kinds: tuple[Numbers, ...] = ("endogenous", "reward_model")
        for numbers in kinds:
            deployment, port = DEPLOYMENT[numbers], free_port()
            where = (str(stage.folders[deployment]), TASK[deployment], str(port), *arguments)
            url = f"http://127.0.0.1:{port}"
            try:
                with _serving(
                    stage, module, python(f"bench.rivals.{module}", *where), url + ready
                ) as server:
                    rival = side(server, url)
                    name = f"service / {rival.name}, {numbers}, {mode} mode"
                    yield _against(name, stage, numbers, rival, (rounds, target))
            except ServerFailed as error:
                yield Skipped(f"service / {module}, {numbers}, {mode} mode", error.brief)


def _against(
    name: str, stage: Stage, numbers: Numbers, rival: Side, how: tuple[int, float]
) -> Figure:
    """Our service beside another, both up all the time, loaded in turns."""
    rounds, target = how
    expected, both = stage.expected(numbers), {"service": stage.ours(numbers), "rival": rival}
    for side in both.values():
        warm_up(stage, side, expected)
    functions = {key: partial(_taken, stage, side, expected) for key, side in both.items()}
    return _compared(name, stage, functions, rounds=rounds, target=target)


def _compared(
    name: str,
    stage: Stage,
    functions: dict[str, Callable[[], Taken]],
    *,
    rounds: int,
    target: float,
) -> Figure:
    """Median wall time of each, as tokens per second; a shared prompt counts with every response,
    computed or not."""
    taken = in_turns(functions, rounds=rounds)
    ours, rival = (median(each.wall_s for each in runs) for runs in taken.values())
    tokens = sum(len(item.ids) for item in stage.items)
    note = "; ".join(
        f"{key} {min(each.wall_s for each in runs):.3g}-{max(each.wall_s for each in runs):.3g} s, "
        f"CPU {median(each.cpu_s for each in runs):.3g} s"
        for key, runs in taken.items()
    )
    return Figure(name, tokens / ours, tokens / rival, rival / ours, target, "tok/s", note=note)


def warm_up(stage: Stage, side: Side, expected: list[np.ndarray]) -> None:
    """Some items through it, their numbers checked; then all its processes are bound to their
    cores."""
    few = stage.items[:WARM_UP]
    side.server.pin(lambda: check(side, stage.load(side, few).replies, few, expected), stage.cores)


def _taken(stage: Stage, side: Side, expected: list[np.ndarray]) -> Taken:
    cpu_began = side.server.cpu_seconds()
    load = stage.load(side, stage.items)
    taken = Taken(load.seconds, side.server.cpu_seconds() - cpu_began)
    check(side, load.replies, stage.items, expected)
    return taken


def check(side: Side, replies: list[str], items: list[Item], expected: list[np.ndarray]) -> None:
    """No item is lost, and its numbers are those of the engine."""
    for place, (found, wanted) in enumerate(
        zip(side.numbers(replies, items), expected, strict=False)
    ):
        if found.shape != wanted.shape or not np.abs(found - wanted).max() < AGREE:
            gap = (
                np.abs(found - wanted).max()
                if found.shape == wanted.shape
                else f"{found.shape} for {wanted.shape}"
            )
            raise AssertionError(f"{side.name} and the engine differ on item {place}: {gap}")


@contextlib.contextmanager
def set_up(num_groups: int, mode: str) -> Iterator[Stage]:
    """Two checkpoint folders, and one service of ours on both; prints what is scored and how it is
    served."""
    items, cores = (
        workload.mix(num_groups, vocab_size=SHAPE.get("vocab_size", VOCAB_SIZE)),
        Cores.here(),
    )
    print(f"  {workload.describe(items)}; {mode} mode; {cores.describe()}", flush=True)
    print(
        f"  load: httpx, {CONCURRENCY} one-item requests in flight, ids, the same for all servers",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="tokenreward-bench-") as name:
        folder = Path(name)
        shape = {**SHAPE}
        vocab_size = shape.pop("vocab_size", VOCAB_SIZE)
        folders = {
            "lm": workload.save(workload.language_model(vocab_size, **shape), folder / "lm"),
            "rm": workload.save(workload.reward_model(vocab_size, **shape), folder / "rm"),
        }
        offline, port = Both(folders, cores), free_port()
        command, url = (
            python("tokenreward.cli", "serve", "--config", _config(folder, port)),
            f"http://127.0.0.1:{port}",
        )
        with serving(
            command, ready_url=f"{url}/readyz", log=folder / "ours.txt", env=MODES[mode]
        ) as server:
            yield Stage(folder, folders, items, cores, offline, mode, server, url)


def _config(folder: Path, port: int) -> str:
    deployments = [
        {"name": name, "checkpoint": name, "task": TASK[name], "scorers": scorers}
        for name, scorers in SCORERS.items()
    ]
    file = folder / "service.yaml"
    file.write_text(json.dumps({"port": port, "deployments": deployments}))  # JSON is YAML
    return str(file)


@contextlib.contextmanager
def _serving(
    stage: Stage, name: str, command: list[str], ready_url: str, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """A rival with one thread, as our replicas have."""
    env = {"OMP_NUM_THREADS": "1", **(env or {})}
    log = stage.folder / f"{name}.txt"
    with serving(command, ready_url=ready_url, log=log, env=env, patience_s=START_S) as server:
        yield server
