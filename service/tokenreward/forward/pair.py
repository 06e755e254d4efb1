"""A policy and its reference on one deployment: two checkpoints, or one, read with its adapter and
without.

Each is probed by itself and keeps the layout that serves it; the pair sends every row to its own
model and puts the outputs back in order. It knows no scorers. Not thread-safe: one thread runs it,
because switching is on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tokenreward.checkpoints.adapter import Switch
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Model, Needs, Outputs, Row, RowRequest
from tokenreward.forward.layout import Layout, LayoutChoice, Pending
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.patches import Linear, onednn_agrees
from tokenreward.forward.probe import choose_layout

Say = Callable[[str], None]
Standing = Callable[[], AbstractContextManager[None]]


class Pair:
    """Two layouts as one."""

    def __init__(self, policy: Layout, reference: Layout) -> None:
        self._layouts: dict[Model, Layout] = {"policy": policy, "reference": reference}
        same = policy.name == reference.name
        self.name = policy.name if same else f"policy {policy.name}, reference {reference.name}"
        self.shares = policy.shares and reference.shares
        self.runs_ahead = policy.runs_ahead and reference.runs_ahead

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes, in both models together."""
        return sum(
            layout.num_computed([row for row in rows if row.model == model])
            for model, layout in self._layouts.items()
        )

    def launch(self, requests: Sequence[RowRequest]) -> Pending:
        """Starts a pass of each model over its own rows, in the order in which they come."""
        parts = []
        for model, layout in self._layouts.items():
            places = [place for place, (row, _) in enumerate(requests) if row.model == model]
            if places:
                parts.append((places, layout.launch([requests[place] for place in places])))
        return PendingPair(parts)

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()


@dataclass(frozen=True, slots=True, eq=False)
class PendingPair:
    """A pass of each model that had rows, with the places of these rows among all rows."""

    parts: list[tuple[list[int], Pending]]

    def result(self) -> list[Outputs]:
        """The outputs of both passes, in the order of the rows."""
        outputs: dict[int, Outputs] = {}
        for places, pending in self.parts:
            outputs |= zip(places, pending.result(), strict=True)
        return [outputs[place] for place in range(len(outputs))]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One of two layouts on one model: `attention` is what its layout runs under, `standing` what
    the model is within while it runs."""

    layout: Layout
    model: Any
    attention: str
    standing: Standing

    @property
    def name(self) -> str:
        """The layout's."""
        return self.layout.name

    @property
    def shares(self) -> bool:
        """As the layout does."""
        return self.layout.shares

    @property
    def runs_ahead(self) -> bool:
        """As the layout does."""
        return self.layout.runs_ahead

    def num_computed(self, rows: Sequence[Row]) -> int:
        """The layout's."""
        return self.layout.num_computed(rows)

    def launch(self, requests: Sequence[RowRequest]) -> Pending:
        """The layout's pass, of the model with or without its adapter.

        The model may be switched again before the result is asked for.
        """
        with self._on():
            return self.layout.launch(requests)

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()

    def _on(self) -> AbstractContextManager[None]:
        if self.model.config._attn_implementation != self.attention:
            self.model.set_attn_implementation(self.attention)
        return self.standing()


def choose_layouts(
    checkpoint: Checkpoint, needs: Mapping[Model, Needs], *, say: Say
) -> LayoutChoice:
    """The layout of the checkpoint, or the pair's with its reference. Raises CheckpointRefused."""
    if checkpoint.reference is None:
        return choose_layout(checkpoint, needs["policy"], say=say)
    probe = probe_reference = choose_layout
    if checkpoint.reference.model is checkpoint.model:
        probe = partial(_turn, standing=nullcontext)
        probe_reference = partial(_turn, standing=Switch(checkpoint.model).off)
    first = probe(checkpoint, needs["policy"], say=_named("policy", say))
    ours = _take_linear(first.layout)
    second = probe_reference(
        checkpoint.reference,
        needs["reference"],
        say=_named("reference", say),
        through_onednn=ours is not None and onednn_agrees(checkpoint.reference.model),
    )
    theirs = _take_linear(second.layout)
    if ours is theirs:
        for layout in (first.layout, second.layout):
            _give_linear(layout, ours)
    elif first.measure is not None:
        first = replace(first, gap=first.measure(first.layout))
        say(
            "policy: float32 linears are torch's own after all, as the reference's cannot go "
            "through oneDNN, too: the "
            f"packed layout differs in {first.gap}"
        )
    reasons = {"policy": first.reason, "reference": second.reason}
    reason = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    nearest = max((first.gap, second.gap), key=lambda gap: gap.difference / gap.bound)
    return LayoutChoice(Pair(first.layout, second.layout), nearest, reason or None)


def _turn(
    checkpoint: Checkpoint,
    needs: Needs,
    *,
    standing: Standing,
    say: Say,
    through_onednn: bool | None = None,
) -> LayoutChoice:
    """The verdict on the model with or without its adapter. It leaves the model's attention as it
    found it."""
    model = checkpoint.model
    before = model.config._attn_implementation
    with standing():
        verdict = choose_layout(checkpoint, needs, say=say, through_onednn=through_onednn)
    attention = model.config._attn_implementation
    model.set_attn_implementation(before)
    return replace(verdict, layout=Turn(verdict.layout, model, attention, standing))


def _take_linear(layout: Layout) -> Linear | None:
    """The operator that the layout chose for float32 linears, which then are torch's own again.

    It is put on the model, so one model has one; and two must have the same for equal models to
    give equal numbers.
    """
    packed = _packed(layout)
    chosen = None if packed is None else packed.linear
    _give_linear(layout, None)
    return chosen


def _give_linear(layout: Layout, linear: Linear | None) -> None:
    packed = _packed(layout)
    if packed is not None:
        packed.compute_linears_through(linear)


def _packed(layout: Layout) -> PackedLayout | None:
    inner = layout.layout if isinstance(layout, Turn) else layout
    return inner if isinstance(inner, PackedLayout) else None


def _named(name: str, say: Say) -> Say:
    return lambda line: say(f"{name}: {line}")
