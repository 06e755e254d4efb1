"""Passes that are asked for together: an answer comes when its own has ended, and is its own. And
what a row alone takes in float32, where torch chooses the kernel: no map of its attention.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
import torch

from bench import workload
from bench.figure import Figure, Result
from gpu.shapes import LLAMA_8B
from gpu.stand import Stand, Work
from gpu.throughput import LOGITS
from tokenreward.forward.kernels import attend_alone

# Of two equal passes the first has ended after half of the time; what is fetched behind the second
# takes all of it.
FIRST = 0.7
OF_MAP = 0.25
ROUNDS = 5


def ahead(stand: Stand) -> Iterator[Result]:
    """As the service asks: the next batch before this one's answer is waited for."""
    served, sizes = stand.served(LLAMA_8B, "causal_lm", LOGITS), stand.sizes
    work = workload.rows(
        stand.items([sizes.length] * (sizes.budget // sizes.length), served.shape.vocab), LOGITS
    )
    served.run([work])
    taken = [first_and_both(stand, served.layout, work) for _ in range(ROUNDS)]
    first, both = (median(column) for column in zip(*taken, strict=True))
    name = f"asked ahead {LLAMA_8B.name}"
    yield Figure(
        f"{name}, first answer of two passes' time",
        first,
        both,
        first / both,
        FIRST,
        "s",
        ceiling=True,
    )
    off = furthest(served.layout, [work[:end] for end in range(len(work), 0, -1)])
    yield Figure(f"{name}, answers off those alone", off, 0, off, 1e-3, "logits", ceiling=True)


def first_and_both(stand: Stand, layout: Any, work: Work) -> tuple[float, float]:
    """Seconds until the first answer of two, and until both."""
    times: list[float] = []

    def ask() -> None:
        began = time.perf_counter()
        for pending in [layout.launch(work), layout.launch(work)]:
            pending.result()
            times.append(time.perf_counter() - began)

    stand.clock.seconds(ask)
    return times[0], times[1]


def furthest(layout: Any, works: list[Work]) -> float:
    """How far answers are from those of the same passes one by one, at most: all asked for first,
    of many sizes."""
    alone = [layout.run(work) for work in works]
    passes = [layout.launch(work) for work in works]
    found = [pending.result() for pending in passes[::-1]][::-1]
    pairs = [
        pair
        for ours, theirs in zip(found, alone, strict=True)
        for pair in zip(ours, theirs, strict=True)
    ]
    return max(float(np.abs(ours.chosen - theirs.chosen).max()) for ours, theirs in pairs)


@torch.inference_mode()
def alone(stand: Stand) -> Iterator[Result]:
    """Grouped heads in float32, for which not every fused kernel is made."""
    shape, length, device = stand.shape(LLAMA_8B), stand.sizes.dense, stand.clock.device
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (torch.randn(1, num, length, shape.head_dim, device=device) for num in heads)
    out = torch.empty(length, shape.heads, shape.head_dim, device=device)
    took = stand.clock.peak_bytes(
        lambda: attend_alone((q, k, v), [((0, length),)], shape.head_dim**-0.5, out)
    )
    whole = shape.heads * length**2 * out.element_size()
    name = f"a row alone in float32, of its map {shape.heads} x {length} x {length}"
    yield Figure(name, took / 2**20, whole / 2**20, took / whole, OF_MAP, "MiB", ceiling=True)
