"""A policy and its reference on one deployment: two checkpoints, or one checkpoint that is read
with its adapter and without.

Each is probed by itself and keeps the layout that serves it. The pair sends every row to its own
model and puts the outputs back in order. It knows no scorers. It is not thread-safe: a switch of
the adapter is on the model, so one thread runs it.
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


class Pair:
    """A layout made of two: each reads the rows of its own model."""

    def __init__(self, policy: Layout, reference: Layout) -> None:
        self.layouts: dict[Model, Layout] = {"policy": policy, "reference": reference}
        self.name = policy.name
        if policy.name != reference.name:
            self.name = f"policy {policy.name}, reference {reference.name}"
        self.shares = policy.shares and reference.shares
        self.runs_ahead = policy.runs_ahead and reference.runs_ahead

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes, in both models together."""
        num_tokens = 0
        for model, layout in self.layouts.items():
            num_tokens += layout.num_computed([row for row in rows if row.model == model])
        return num_tokens

    def launch(self, requests: Sequence[RowRequest]) -> Pending:
        """Starts a pass of each model over its own rows, in the order in which they come."""
        parts = []
        for model, layout in self.layouts.items():
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


class AdapterView:
    """A layout of a model with its adapter, or of the same model without it.

    Args:
        layout: The layout.
        model: The model, which another view may switch meanwhile.
        attention: The attention implementation that the layout runs under.
        switched: Gives a context within which the model has its adapter, or has it not.
    """

    def __init__(
        self,
        layout: Layout,
        model: Any,
        *,
        attention: str,
        switched: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.layout = layout
        self.name = layout.name
        self.shares = layout.shares
        self.runs_ahead = layout.runs_ahead
        self._model = model
        self._attention = attention
        self._switched = switched

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes."""
        return self.layout.num_computed(rows)

    def launch(self, requests: Sequence[RowRequest]) -> Pending:
        """Starts a pass. The model may be switched again before the result is asked for."""
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)
        with self._switched():
            return self.layout.launch(requests)

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()


def choose_layouts(
    checkpoint: Checkpoint, needs: Mapping[Model, Needs], *, say: Callable[[str], None]
) -> LayoutChoice:
    """The layout of a checkpoint, or the pair of layouts of a checkpoint and its reference.

    Args:
        checkpoint: The policy, which holds its reference if it has one.
        needs: What scorers will ask of the rows of each model.
        say: Is told each decision, in one line.

    Raises:
        CheckpointRefused: A model's own forward fails.
    """
    reference = checkpoint.reference
    if reference is None:
        return choose_layout(checkpoint, needs["policy"], say=say)
    probe = probe_reference = choose_layout
    if reference.model is checkpoint.model:
        probe = partial(_choose_view, switched=nullcontext)
        probe_reference = partial(_choose_view, switched=Switch(checkpoint.model).off)
    first = probe(checkpoint, needs["policy"], say=lambda line: say(f"policy: {line}"))
    # The operator of linears is on the model, so one model has one. Two models must have the same,
    # for equal models to give equal numbers. So the reference is probed with the policy's choice.
    linear = _swap_linear(first.layout, None)
    second = probe_reference(
        reference,
        needs["reference"],
        say=lambda line: say(f"reference: {line}"),
        through_onednn=linear is not None and onednn_agrees(reference.model),
    )
    if _swap_linear(second.layout, None) is linear:
        for choice in (first, second):
            _swap_linear(choice.layout, linear)
    elif first.measure is not None:
        first = replace(first, gap=first.measure(first.layout))
        say(
            "policy: float32 linears are torch's own after all, as the reference's cannot go "
            f"through oneDNN, too: the packed layout differs in {first.gap}"
        )
    reasons = {"policy": first.reason, "reference": second.reason}
    reason = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    nearest = max((first.gap, second.gap), key=lambda gap: gap.difference / gap.bound)
    return LayoutChoice(Pair(first.layout, second.layout), nearest, reason or None)


def _choose_view(
    checkpoint: Checkpoint,
    needs: Needs,
    *,
    switched: Callable[[], AbstractContextManager[None]],
    say: Callable[[str], None],
    through_onednn: bool | None = None,
) -> LayoutChoice:
    """The layout of a model with or without its adapter.

    It leaves the model under the attention that it had, so that the other probe sees it as loaded.
    """
    model = checkpoint.model
    before = model.config._attn_implementation
    with switched():
        choice = choose_layout(checkpoint, needs, say=say, through_onednn=through_onednn)
    attention = model.config._attn_implementation
    model.set_attn_implementation(before)
    view = AdapterView(choice.layout, model, attention=attention, switched=switched)
    return replace(choice, layout=view)


def _swap_linear(layout: Layout, linear: Linear | None) -> Linear | None:
    """Has a packed layout compute float32 linears through an operator; None is torch's own.

    Returns:
        The operator before; None for torch's own, and for a layout that is not packed.
    """
    inner = layout.layout if isinstance(layout, AdapterView) else layout
    if not isinstance(inner, PackedLayout):
        return None
    before = inner.linear
    inner.compute_linears_through(linear)
    return before
