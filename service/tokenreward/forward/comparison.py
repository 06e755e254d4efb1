"""How far apart two sets of outputs are, and how far they may be: per kind of number, because kinds
differ in size.

It knows arrays only. Attention weights are at most 1 and values may be 100: one bound for all would
say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenreward.contract import Outputs

ByKind = dict[str, float]


@dataclass(frozen=True, slots=True)
class Gap:
    """The kind of number that comes nearest to its bound, or is furthest past it."""

    kind: str
    difference: float
    bound: float

    @property
    def is_within(self) -> bool:
        """Whether every kind keeps its bound."""
        return self.difference <= self.bound

    def __str__(self) -> str:
        return f"{self.kind} by {self.difference:.1e} (bound {self.bound:.1e})"


def numbers(outputs: Outputs) -> dict[str, np.ndarray]:
    """Everything the model said of a row, by kind, in float64."""
    tables: tuple[Mapping[Any, np.ndarray], ...] = (outputs.lse, outputs.entropy, outputs.logits)
    logits = [outputs.chosen, *(table[key] for table in tables for key in sorted(table))]
    pooled = None if outputs.pooled is None else np.asarray([outputs.pooled])
    attention = [outputs.attention[reading] for reading in sorted(outputs.attention)]
    kinds: dict[str, Sequence[np.ndarray | None]] = {
        "logits": logits,
        "values": [outputs.values, pooled],
        "attention": attention,
    }
    there = {kind: [part for part in parts if part is not None] for kind, parts in kinds.items()}
    return {
        kind: np.concatenate(parts).astype(np.float64) for kind, parts in there.items() if parts
    }


def largest(outputs: Sequence[Outputs]) -> ByKind:
    """The largest absolute number of each kind."""
    found: ByKind = {}
    for row in outputs:
        for kind, values in numbers(row).items():
            found[kind] = max(found.get(kind, 0.0), float(np.abs(values).max(initial=0.0)))
    return found


def differences(ours: Sequence[Outputs], truth: Sequence[Outputs]) -> ByKind:
    """The largest absolute difference of each kind; infinite if one of ours is not finite."""
    found: ByKind = {}
    for left, right in zip(ours, truth, strict=True):
        for kind, expected in numbers(right).items():
            difference = np.nan_to_num(np.abs(numbers(left)[kind] - expected), nan=np.inf)
            found[kind] = max(found.get(kind, 0.0), float(difference.max(initial=0.0)))
    return found


def float32_bounds(truth: Sequence[Outputs]) -> ByKind:
    """What exact float32 paths may differ by: 1e-5 * max(1, largest)."""
    return {kind: 1e-5 * max(1.0, size) for kind, size in largest(truth).items()}


def gap(found: ByKind, bounds: ByKind) -> Gap:
    """The tightest kind."""
    kind = max(found, key=lambda kind: found[kind] / bounds[kind])
    return Gap(kind, found[kind], bounds[kind])
