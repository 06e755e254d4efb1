"""What a pass keeps the device busy with, and where the host waits for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import profile as profiler

from bench import workload
from bench.figure import Figure, Point, Result
from gpu.clock import Clock
from gpu.prompts import group
from gpu.rewards import DENSE
from gpu.shapes import LLAMA_8B
from gpu.stand import Stand
from gpu.throughput import LOGITS

# By the names of kernels (and, in a rehearsal, of operators); the first that matches.
KINDS = {
    "attention": r"flash|fmha|attention|attn",
    "matrix product": r"gemm|nvjet|xmma|cublas|cutlass|splitk|matmul|mkldnn|::(add|ad|b)?mm$",
    "copy": r"mem(cpy|set)|::copy_",
    "reduction": r"reduce|softmax|triton_(red|per)|::(sum|mean|amax|max|logsumexp)$",
    "elementwise and the rest": r"",
}
NUM_SHOWN = 20
NAME_LENGTH = 110


def kind(kernel: str) -> str:
    return next(name for name, pattern in KINDS.items() if re.search(pattern, kernel.lower()))


def busy(clock: Clock, function: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Milliseconds and calls of each kernel."""
    with profiler(activities=list(clock.activities)) as found:
        clock.seconds(function)
    events = (event for event in found.key_averages() if event.device_type == clock.kind)
    own = (event for event in events if not getattr(event, "is_user_annotation", False))
    times = {event.key: (clock.busy_us(event) / 1000, int(event.count)) for event in own}
    return {key: each for key, each in times.items() if each[0] > 0}


@torch.inference_mode()
def profile(stand: Stand) -> Iterator[Result]:
    """One pass of endogenous rewards: by kind, the head by itself, and the kernels that take
    longest."""
    served, sizes = stand.served(LLAMA_8B, "causal_lm", LOGITS), stand.sizes
    items = stand.items([sizes.length] * (sizes.budget // sizes.length), served.shape.vocab)
    work = workload.rows(items, LOGITS)
    wall_ms = stand.turns({"ours": lambda: served.run([work])})["ours"] * 1000
    kernels = busy(stand.clock, lambda: served.run([work]))
    total_ms = sum(ms for ms, _ in kernels.values())
    name = f"profile {LLAMA_8B.name}"
    yield Figure(
        f"{name}, device busy of a pass's time", total_ms, wall_ms, total_ms / wall_ms, 0, "ms"
    )
    for each in KINDS:
        ms = sum(ms for key, (ms, _) in kernels.items() if kind(key) == each)
        yield Figure(f"{name}, {each}", ms, total_ms, ms / total_ms, 0, "ms")
    head_ms = sum(ms for ms, _ in busy(stand.clock, _head_alone(served.layout, stand)).values())
    yield Figure(
        f"{name}, of that the language head", head_ms, total_ms, head_ms / total_ms, 0, "ms"
    )
    longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:NUM_SHOWN]
    yield from (Point("profile", key[:NAME_LENGTH], count, ms) for key, (ms, count) in longest)


def _head_alone(layout: Any, stand: Stand) -> Callable[[], object]:
    """What a pass asks of the head, on random states."""
    weight, device, num_rows = layout.language_head.weight, stand.clock.device, stand.sizes.budget
    hidden = torch.randn(num_rows, weight.shape[1], device=device).to(weight.dtype)
    at = torch.arange(num_rows, device=device)

    def ask() -> None:
        layout.language_head.token_logits(hidden, at, at % weight.shape[0])
        layout.language_head.normalisers(hidden, None, [1.0], [])

    return ask


def waits(stand: Stand) -> Iterator[Result]:
    """While a pass is asked for, after one like it; its end, where the numbers are fetched, is not
    counted."""
    control = len(stand.clock.waits(lambda: torch.ones(1, device=stand.clock.device).item()))
    note = f"a wait made on purpose is seen {control} times"
    lm = stand.served(LLAMA_8B, "causal_lm", LOGITS)
    sets = {
        "nothing shared": workload.rows(
            stand.items([stand.sizes.length] * 4, lm.shape.vocab), LOGITS
        ),
        "a shared prompt": workload.rows(group(stand, lm.shape.vocab), LOGITS),
    }
    for name, work in sets.items():
        yield _waits(stand, lm.layout, f"endogenous, {name}", work, note)
    rm = stand.served(LLAMA_8B, "reward_model", DENSE)
    work = workload.rows(stand.items([stand.sizes.length] * 4, rm.shape.vocab), DENSE)
    yield _waits(stand, rm.layout, "attention_dense", work, note)


def _waits(stand: Stand, layout: Any, name: str, work: Any, note: str) -> Figure:
    layout.run(work)
    found = stand.clock.waits(lambda: layout.launch(work))
    for place in sorted(set(found)):
        stand.say(f"waits {found.count(place)} times at {place}")
    return Figure(
        f"host waits in a pass, {name}",
        len(found),
        0,
        len(found),
        0,
        "waits",
        ceiling=True,
        note=note,
    )
