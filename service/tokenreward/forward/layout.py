"""A way to run token rows through a model, the `Layout` protocol, and how far apart the outputs of
two ways are for each kind of number.

Kinds differ in size: attention weights are at most 1, and values may be 100, so one bound for all
of them would say nothing. This module knows no model and no device. `packed`, `padded` and `plain`
run one model, `pair` runs two, and `probe` chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tokenreward.contract import Outputs, Row, RowRequest
from tokenreward.forward.transfer import Pending

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


# Its argument `view`, if there is one, gives a context within which the layout may run.
Measure = Callable[..., Iterator[Gap | None]]


@runtime_checkable
class Layout(Protocol):
    """A way to run rows.

    Attributes:
        gap: How far it is from the model's own forward, as the probe measured it, in the kind of
            number that is nearest to its bound; None before the probe.
        measure: Measures the gap again, after the weights have changed, in parts: it yields None
            after each of them, then the gap. None if that cannot be done.
        reason: Why it is not the packed layout; None if it is.
    """

    gap: Gap | None
    measure: Measure | None
    reason: str | None

    @property
    def name(self) -> str:
        """The name that `GET /v1/scorers` shows."""

    @property
    def shares(self) -> bool:
        """Whether a prompt that rows of one pass have in common is computed once."""

    @property
    def runs_ahead(self) -> bool:
        """Whether `launch` returns before the device has computed the pass.

        It does so only where the device computes while the host goes on.
        """

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that the model computes in a pass over these rows, padding included."""

    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Starts a pass over rows on the device.

        Returns:
            The pass. Its result is the outputs of each row, in order.
        """

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Launches a pass and waits for it: the outputs of each row, in order."""


def in_order(parts: Sequence[tuple[list[int], Pending[list[Outputs]]]]) -> list[Outputs]:
    """Waits for passes that each run some of the rows.

    Args:
        parts: For each pass, the places of its rows among all rows, and the pass.

    Returns:
        The outputs of all rows, in the order of the rows.
    """
    outputs: dict[int, Outputs] = {}
    for places, pending in parts:
        outputs |= zip(places, pending.result(), strict=True)
    return [outputs[place] for place in range(len(outputs))]


def numbers(outputs: Outputs) -> dict[str, np.ndarray]:
    """All numbers of a row that are there, by kind, in float64."""
    kinds: dict[str, list[np.ndarray]] = {"logits": [], "values": [], "attention": []}
    if outputs.chosen is not None:
        kinds["logits"].append(outputs.chosen)
    if outputs.top_logits is not None:
        kinds["logits"].append(outputs.top_logits.reshape(-1))
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
