"""What a push of weights costs the engine that serves: the pause between two batches, and memory.

The model has the shape of SmolLM2-135M, in float32, from files in float32: 513 MiB. Weights are
pushed while callers wait for replies at all times, and the pause is the time in which the device
computed nothing. Memory is taken without callers.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench import workload
from bench.figure import Figure
from bench.timing import peak_bytes
from fakes.layouts import Intercepted
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.weights import Weights

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
VOCAB_SIZE = 49_152
MAX_PAUSE_S = 0.5
NUM_CALLERS = 4


def pushes(*, rounds: int, shape: dict[str, Any] | None = None) -> Iterator[Figure]:
    """The longest pause of so many pushes, and the memory of one."""
    with tempfile.TemporaryDirectory() as name:
        folders, largest = _folders(Path(name), shape or SHAPE)
        settings = DeploymentSettings(
            name="lm", checkpoint=str(folders[0]), task="causal_lm", scorers=[{"type": "logprob"}]
        )
        began = time.monotonic()
        engine = Engine.load(settings, say=lambda line: None)
        load_s = time.monotonic() - began
        pauses = asyncio.run(_pauses(engine, folders, rounds))
        judged = shape is None
        yield Figure(
            f"pause of a push, 135M float32, the longest of {len(pauses)}",
            max(pauses),
            MAX_PAUSE_S,
            max(pauses) / MAX_PAUSE_S,
            1,
            "s",
            ceiling=True,
            note=f"loading another engine took {load_s:.1f} s",
            judged=judged,
        )
        version = rounds + 2
        push = Weights(checkpoint=str(folders[version % 2]), version=version)
        peak = peak_bytes(lambda: asyncio.run(_push(engine, push)))
        yield Figure(
            "memory that a push takes, over its largest tensor",
            peak / 2**20,
            largest / 2**20,
            peak / largest,
            1.0,
            "MiB",
            ceiling=True,
            judged=judged,
        )


def _folders(folder: Path, shape: dict[str, Any]) -> tuple[Sequence[Path], int]:
    """Two checkpoints of this shape, and the bytes of their largest tensor."""
    folders, largest = [], 0
    for seed in range(2):
        torch.manual_seed(seed)
        config = workload.config(VOCAB_SIZE, **shape)
        model = AutoModelForCausalLM.from_config(config)
        folders.append(workload.save(model, folder / str(seed)))
        largest = max(parameter.numel() * 4 for parameter in model.parameters())
    return folders, largest


async def _push(engine: Engine, weights: Weights) -> None:
    await engine.prepare(weights)
    await engine.commit(weights.version)


async def _pauses(engine: Engine, folders: Sequence[Path], rounds: int) -> list[float]:
    """Seconds without a pass around each of so many pushes under standing load."""
    passes: list[tuple[float, float]] = []

    def run(requests: Any, real: Any) -> Any:
        began = time.monotonic()
        outputs = real(requests)
        passes.append((began, time.monotonic()))
        return outputs

    Intercepted(engine, run)
    item = {"prompt": list(range(5, 20)), "response": list(range(20, 52))}
    request = parse(RewardsRequest, {"scorer": "logprob", "items": [item] * 4})

    async def call() -> None:
        while True:
            await engine.score(request)

    callers = [asyncio.create_task(call()) for _ in range(NUM_CALLERS)]
    pauses = []
    for version in range(2, rounds + 2):
        await asyncio.sleep(0.5)
        await engine.prepare(Weights(checkpoint=str(folders[version % 2]), version=version))
        num_before = max(0, len(passes) - 1)
        await engine.commit(version)
        num_after = len(passes)
        while len(passes) < num_after + 2:  # noqa: ASYNC110 - the device's thread adds to it
            await asyncio.sleep(0.01)
        around = passes[num_before:]
        pauses.append(max(after[0] - before[1] for before, after in pairwise(around)))
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return pauses
