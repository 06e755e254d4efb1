"""A policy and its reference on one deployment: two checkpoints, or one checkpoint that is read
with its adapter and without.

Each is probed by itself and keeps the layout that serves it. The pair sends every row to its own
model and puts the outputs back in order. It knows no scorers. It is not thread-safe: a switch of
the adapter is on the model, so one thread runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from tokenreward.checkpoints.adapter import lora_layers, without_adapter
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Model, Needs, Outputs, Row, RowRequest
from tokenreward.forward.layout import Gap, Layout, Measure, in_order
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.padded import PaddedLayout
from tokenreward.forward.patches import Linear, onednn_agrees
from tokenreward.forward.probe import choose_layout
from tokenreward.forward.transfer import Pending

# Gives a context within which a model runs as one layout needs it.
View = Callable[[], AbstractContextManager[None]]


class Pair:
    """A layout made of two: each reads the rows of its own model.

    Args:
        policy: The layout of the policy.
        reference: The layout of the reference.
        views: For each model, gives a context within which its passes are launched (see `view`).
            Two models that share no weights need none.
    """

    def __init__(
        self, policy: Layout, reference: Layout, *, views: Mapping[Model, View] | None = None
    ) -> None:
        self.layouts: dict[Model, Layout] = {"policy": policy, "reference": reference}
        # The gap of the two that is nearer to its bound, and the reasons of both.
        self.gap = _nearest([layout.gap for layout in self.layouts.values()])
        self.measure: Measure | None = None
        if all(layout.measure is not None for layout in self.layouts.values()):
            self.measure = self._measure
        reasons = [
            f"{model}: {layout.reason}" for model, layout in self.layouts.items() if layout.reason
        ]
        self.reason = "; ".join(reasons) or None
        self.name = policy.name
        if policy.name != reference.name:
            self.name = f"policy {policy.name}, reference {reference.name}"
        self.shares = policy.shares and reference.shares
        self.runs_ahead = policy.runs_ahead and reference.runs_ahead
        self._views = views or {}

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes, in both models together."""
        num_tokens = 0
        for model, layout in self.layouts.items():
            num_tokens += layout.num_computed([row for row in rows if row.model == model])
        return num_tokens

    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Starts a pass of each model over its own rows, in the order in which they come."""
        parts = []
        for model, layout in self.layouts.items():
            places = [place for place, (row, _) in enumerate(requests) if row.model == model]
            if not places:
                continue
            with self._views.get(model, nullcontext)():
                parts.append((places, layout.launch([requests[place] for place in places])))
        return Pending(partial(in_order, parts))

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order."""
        return self.launch(requests).result()

    def _measure(self) -> Iterator[Gap | None]:
        """Measures both layouts, one after the other."""
        for model, layout in self.layouts.items():
            assert layout.measure is not None
            for gap in layout.measure(view=self._views.get(model, nullcontext)):
                layout.gap = gap
                yield None
        yield _nearest([layout.gap for layout in self.layouts.values()])


def _nearest(gaps: Sequence[Gap | None]) -> Gap | None:
    """The gap that is nearest to its bound."""
    present = [gap for gap in gaps if gap is not None]
    return max(present, key=lambda gap: gap.difference / gap.bound, default=None)


@contextmanager
def view(model: Any, attention: str, switched: View = nullcontext) -> Iterator[None]:
    """Within it, a model runs under one attention implementation, with its adapter or without.

    Two layouts of one model may differ in both. The other one may be launched before the result of
    this one's pass is there.

    Args:
        model: The model.
        attention: The attention implementation that the layout runs under.
        switched: Gives a context within which the model has its adapter, or has it not.
    """
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
    with switched():
        yield


def choose_layouts(
    checkpoint: Checkpoint, needs: Mapping[Model, Needs], *, say: Callable[[str], None]
) -> Layout:
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
    model, loaded_attention = checkpoint.model, checkpoint.model.config._attn_implementation

    def probe(name: Model, of: Checkpoint, *, through_onednn: bool | None) -> Layout:
        return choose_layout(
            of,
            needs[name],
            say=lambda line: say(f"{name}: {line}"),
            through_onednn=through_onednn,
        )

    first = probe("policy", checkpoint, through_onednn=None)
    views: dict[Model, View] = {"policy": partial(view, model, model.config._attn_implementation)}
    # The operator of linears is on the model, so one model has one. Two models must have the same,
    # for equal models to give equal numbers. So the reference is probed with the policy's choice.
    linear = _swap_linear(first, None)
    through_onednn = linear is not None and onednn_agrees(reference.model)
    switched: View = nullcontext
    if reference.model is model:
        switched = partial(without_adapter, lora_layers(model))
        model.set_attn_implementation(loaded_attention)  # the second probe sees it as loaded
    with switched():
        second = probe("reference", reference, through_onednn=through_onednn)
    attention = reference.model.config._attn_implementation
    views["reference"] = partial(view, reference.model, attention, switched)
    if _swap_linear(second, None) is linear:
        for layout in (first, second):
            _swap_linear(layout, linear)
    else:
        say("policy: float32 linears are torch's own after all, as the reference's must be")
        if isinstance(first, PackedLayout):
            first.split_mlps(None)  # the probe compares with the model as it was loaded
        model.set_attn_implementation(loaded_attention)
        first = probe("policy", checkpoint, through_onednn=False)
    return Pair(first, second, views=views)


def _swap_linear(layout: Layout, linear: Linear | None) -> Linear | None:
    """Has a layout compute float32 linears through an operator; None is torch's own.

    Returns:
        The operator before; None for torch's own, and for the plain layout, which has no other.
    """
    if not isinstance(layout, PackedLayout | PaddedLayout):
        return None
    before = layout.linear
    layout.compute_linears_through(linear)
    return before
