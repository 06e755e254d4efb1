"""How far apart two sets of outputs are, and how far they may be, for each kind of number.

Kinds differ in size: attention weights are at most 1, and values may be 100, so one bound for all
of them would say nothing. This module knows arrays, and no layouts.
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
    """The difference in the kind of number that is nearest to its bound, or furthest past it.

    Attributes:
        kind: "logits", "values" or "attention".
        difference: The largest absolute difference of that kind.
        bound: What it may be.
    """

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
    """All numbers of a row that are there, by kind, in float64."""
    kinds: dict[str, list[np.ndarray]] = {"logits": [], "values": [], "attention": []}
    if outputs.chosen is not None:
        kinds["logits"].append(outputs.chosen)
    tables: tuple[Mapping[Any, np.ndarray], ...] = (outputs.lse, outputs.entropy, outputs.logits)
    for table in tables:
        kinds["logits"] += [table[key] for key in sorted(table)]
    if outputs.values is not None:
        kinds["values"].append(outputs.values)
    if outputs.pooled is not None:
        kinds["values"].append(np.asarray([outputs.pooled]))
    kinds["attention"] += [outputs.attention[reading] for reading in sorted(outputs.attention)]
    return {
        kind: np.concatenate(parts).astype(np.float64) for kind, parts in kinds.items() if parts
    }


def largest(outputs: Sequence[Outputs]) -> ByKind:
    """The largest absolute number of each kind."""
    sizes: ByKind = {}
    for row in outputs:
        for kind, values in numbers(row).items():
            sizes[kind] = max(sizes.get(kind, 0.0), float(np.abs(values).max(initial=0.0)))
    return sizes


def differences(ours: Sequence[Outputs], truth: Sequence[Outputs]) -> ByKind:
    """The largest absolute difference of each kind that the truth has.

    It is infinite if one of our numbers is not finite.
    """
    largest_differences: ByKind = {}
    for our_row, true_row in zip(ours, truth, strict=True):
        our_numbers = numbers(our_row)
        for kind, expected in numbers(true_row).items():
            difference = np.nan_to_num(np.abs(our_numbers[kind] - expected), nan=np.inf)
            most = float(difference.max(initial=0.0))
            largest_differences[kind] = max(largest_differences.get(kind, 0.0), most)
    return largest_differences


def float32_bounds(truth: Sequence[Outputs]) -> ByKind:
    """What exact float32 paths may differ by: 1e-5 * max(1, largest number of the kind)."""
    return {kind: 1e-5 * max(1.0, size) for kind, size in largest(truth).items()}


def gap(differences_by_kind: ByKind, bounds: ByKind) -> Gap:
    """The difference that is largest in terms of its bound."""
    kind = max(differences_by_kind, key=lambda kind: differences_by_kind[kind] / bounds[kind])
    return Gap(kind, differences_by_kind[kind], bounds[kind])
