"""Layers in two parts, beside the model in one piece: the same numbers, and its pace.

On one GPU both parts are on it: what the hooks of the second part cost. On two GPUs the passes are
launched as the service launches them, one more than there are GPUs, and the figure is the pace over
that of one GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench import workload
from bench.figure import Figure, Result, Skipped
from gpu.shapes import LLAMA_8B, build
from gpu.stand import Stand, Work
from gpu.throughput import LOGITS
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.placement.stages import place
from tokenreward.contract import Outputs
from tokenreward.forward.probe import choose_layout

HOOKS = 0.97  # of the pace in one piece, at least
TWO_GPUS = 1.8
PASSES = 8  # of which two do not overlap


def split(stand: Stand) -> Iterator[Result]:
    """The 8B model in two parts."""
    device = stand.clock.device
    yield from _beside_whole(stand, (device, device), "both parts on one device", HOOKS)
    stand.clock.release()
    name = "two devices"
    if device.type == "cuda" and torch.cuda.device_count() == 1:
        yield Skipped(f"split {LLAMA_8B.name}, {name}", "there is one GPU")
        return
    others = torch.device(device.type, 0), torch.device(device.type, 1)
    yield from _beside_whole(stand, others, name, TWO_GPUS)


def _beside_whole(
    stand: Stand, devices: tuple[torch.device, ...], name: str, target: float
) -> Iterator[Result]:
    """How far the numbers of a split model are from those of the whole one, and its pace over the
    whole one's."""
    served, sizes = stand.served(LLAMA_8B, "causal_lm", LOGITS), stand.sizes
    items = stand.items([sizes.length] * (sizes.budget // sizes.length), served.shape.vocab)
    works = [workload.rows(items, LOGITS)] * PASSES
    model = build(served.shape, "causal_lm", devices[0])
    checkpoint = Checkpoint(model, None, "causal_lm", place(model, devices))
    layout: Any = choose_layout(checkpoint, LOGITS, say=stand.say)
    ours, theirs = layout.run(works[0]), served.layout.run(works[0])
    pairs = zip(ours, theirs, strict=True)
    off = max(float(np.abs(mine.chosen - its.chosen).max()) for mine, its in pairs)
    title = f"split {LLAMA_8B.name}, {name}"
    yield Figure(f"{title}, numbers off the whole", off, 0, off, 0, "logits", ceiling=True)
    seconds = stand.turns(
        {
            "split": lambda: in_flight(layout, works, num_ahead=len({*devices})),
            "whole": lambda: in_flight(served.layout, works, num_ahead=1),
        }
    )
    num_tokens = served.num_computed(works)
    paces = {side: num_tokens / taken for side, taken in seconds.items()}
    ratio = paces["split"] / paces["whole"]
    yield Figure(f"{title}, pace", paces["split"], paces["whole"], ratio, target, "tok/s")


def in_flight(layout: Any, works: Sequence[Work], *, num_ahead: int) -> list[list[Outputs]]:
    """Launches passes as the worker does: so many behind the oldest unanswered one."""
    pending: deque[Any] = deque()
    outputs = []
    for work in works:
        pending.append(layout.launch(work))
        if len(pending) > num_ahead:
            outputs.append(pending.popleft().result())
    return outputs + [each.result() for each in pending]
