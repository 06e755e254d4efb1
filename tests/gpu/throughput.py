"""Tokens per second of endogenous rewards, every token scored, nothing shared; and of the language
head alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench import workload
from bench.figure import Figure, Result, Skipped
from gpu import rivals
from gpu.roofline import Bound
from gpu.shapes import HEAD, Shape
from gpu.stand import Served, Stand, Work
from tokenreward.contract import Needs, Outputs

LOGITS = Needs(frozenset({1.0}))
AGREE = (
    0.15  # of the spread: two roundings of many layers; of a layout that is one token off it is 1.4
)
HEAD_TFLOPS = 550
HEAD_MIB = 512


def endogenous(stand: Stand, real: Shape, wanted: float) -> Iterator[Result]:
    """`wanted`: tokens per second."""
    served, sizes = stand.served(real, "causal_lm", LOGITS), stand.sizes
    size = sizes.budget // sizes.length
    items = stand.items([sizes.length] * (size * sizes.batches), served.shape.vocab)
    batches = workload.budgeted(workload.rows(items, LOGITS), max_tokens=sizes.budget)
    sequences = [item.ids for item in items]
    name = f"endogenous {real.name}"
    yield from agreement(name, served.run(batches), rivals.by_sdpa(served.model, sequences, size))
    taken = stand.turns(
        {
            "ours": lambda: served.run(batches),
            "HF sdpa, padded, all logits": lambda: rivals.by_sdpa(served.model, sequences, size),
            "HF eager, padded, log_softmax": lambda: rivals.by_log_softmax(
                served.model, sequences, size
            ),
        }
    )
    ours_s = taken["ours"]
    pace = served.num_computed(batches) / ours_s
    yield Figure(f"{name}, of the tok/s wanted", pace, wanted, pace / wanted, 1, "tok/s")
    yield paces(name, served, batches, ours_s)
    for rival in ("HF sdpa, padded, all logits", "HF eager, padded, log_softmax"):
        yield over(f"{name} / {rival}", ours_s, taken.get(rival), 0)
    yield from of_bound(stand, name, served, batches, ours_s)
    yield memory(stand, name, served, batches[:1])


def agreement(
    name: str, ours: list[Outputs], theirs: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[Figure]:
    """How far Q and V are from theirs, both sides in bfloat16."""
    chosen = np.concatenate([q for q, _ in theirs])
    spread = float(chosen.std())
    pairs = {
        "Q": [np.concatenate([outputs.chosen for outputs in ours]) - chosen],  # type: ignore[misc]
        "V": [outputs.lse[1.0] - v for outputs, (_, v) in zip(ours, theirs, strict=True)],
    }
    for kind, differences in pairs.items():
        yield apart(
            f"{name}, {kind} off HF sdpa's, of the spread",
            np.concatenate(differences),
            spread,
            "logit",
        )


def apart(name: str, differences: np.ndarray, spread: float, unit: str) -> Figure:
    """Root mean square of differences, beside the spread of what differs."""
    rms = float(np.sqrt(np.mean(np.square(differences, dtype=np.float64))))
    return Figure(name, rms, float(spread), rms / float(spread), AGREE, unit, ceiling=True)


def over(name: str, ours_s: float, rival_s: float | None, target: float, note: str = "") -> Result:
    """Seconds beside a rival's; it may have found no room."""
    if rival_s is None:
        return Skipped(name, "the rival does not fit into this device's memory")
    return Figure(name, ours_s, rival_s, rival_s / ours_s, target, "s", note=note)


def paces(name: str, served: Served, batches: list[Work], seconds: float) -> Figure:
    """Tokens per second as a caller counts them, beside those computed."""
    naive = sum(len(row.ids) for batch in batches for row, _ in batch)
    computed = served.num_computed(batches)
    label = f"{name}, tok/s naive and computed"
    return Figure(label, naive / seconds, computed / seconds, naive / computed, 0, "tok/s")


def of_bound(
    stand: Stand, name: str, served: Served, batches: list[Work], seconds: float
) -> Iterator[Figure]:
    """Beside what this device's rates allow, for rows that share nothing."""
    rows = [row for batch in batches for row, _ in batch]
    num_scored = sum(row.stop - row.start + 1 for row in rows)
    lengths = [len(row.ids) for row in rows]
    bound = Bound.of(served.shape, lengths, num_scored, stand.rates)
    for label, least_s in (
        ("roofline", bound.ideal_s),
        ("roofline with HF's elementwise", bound.elementwise_s),
    ):
        pace = sum(lengths) / seconds
        yield Figure(
            f"{name}, of its {label}", pace, sum(lengths) / least_s, least_s / seconds, 0, "tok/s"
        )


def memory(
    stand: Stand, name: str, served: Served, batches: list[Work], most: float | None = None
) -> Figure:
    """Peak above the model; `most` bytes, if that is asked for."""
    taken = stand.clock.peak_bytes(lambda: served.run(batches))
    label, mib = f"{name}, peak memory above the model", taken / 2**20
    if most is None:
        return Figure(label, mib, 0, 0, 0, "MiB")
    return Figure(label, mib, most / 2**20, taken / most, 1, "MiB", ceiling=True)


@torch.inference_mode()
def head(stand: Stand) -> Iterator[Result]:
    """Logit and logsumexp of each row, beside this run's own matrix product."""
    served = stand.served(HEAD, "causal_lm", LOGITS)
    part: Any = served.layout.language_head
    device, num_rows = stand.clock.device, stand.sizes.head_rows
    hidden = torch.randn(num_rows, served.shape.hidden, device=device).bfloat16()
    at = torch.arange(num_rows, device=device)
    targets = torch.randint(0, served.shape.vocab, (num_rows,), device=device)

    def ours() -> None:
        part.token_logits(hidden, at, targets)
        part.normalisers(hidden, None, [1.0], [])

    seconds = stand.turns({"ours": ours})["ours"]
    rate = 2 * num_rows * served.shape.hidden * served.shape.vocab / seconds / 1e12
    name = f"{HEAD.name}, {num_rows} rows"
    yield Figure(
        f"{name}, of the TFLOP/s wanted", rate, HEAD_TFLOPS, rate / HEAD_TFLOPS, 1, "TFLOP/s"
    )
    own = stand.rates.flops_per_s / 1e12
    yield Figure(f"{name}, of a large matrix product", rate, own, rate / own, 0, "TFLOP/s")
    most = stand.clock.peak_bytes(ours) / 2**20
    yield Figure(f"{name}, workspace", most, HEAD_MIB, most / HEAD_MIB, 1, "MiB", ceiling=True)
