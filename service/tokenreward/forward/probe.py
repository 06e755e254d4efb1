"""The load-time probe: does the packed layout give what the model's own forward gives? If it does
not, the plain layout serves.

Random ragged rows go through both, in company and in another order. It is what makes "any
checkpoint" safe: state-space layers, ALiBi, unknown logit scales, and whatever else the packed
layout cannot know, show as a figure here, before the first request. A model that is served in bf16
is probed as a float32 copy first, if there is room for one, because rounding in bf16 hides small
faults. The probe knows no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Outputs, Reading, RowRequest
from tokenreward.forward.comparison import differences, float32_bounds
from tokenreward.forward.layout import Layout
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.patches import MLP_PIECES, onednn_gain, onednn_linear
from tokenreward.forward.plain import PlainLayout
from tokenreward.forward.trial import (
    Trial,
    coarse_bounds,
    float32_copy,
    own_numbers,
    random_rows,
)

_PROBED_PIECE = 7  # tokens: several pieces of a row, of which one is smaller
_DYNAMIC_ROPES = ("dynamic", "longrope")


def choose_layout(
    checkpoint: Checkpoint,
    needs: Needs,
    *,
    say: Callable[[str], None],
    through_onednn: bool | None = None,
) -> Layout:
    """The packed layout if it is exact, else the plain one.

    The packed layout then takes each of its faster ways that keeps every bound, too.

    Args:
        checkpoint: The model. It is left under the attention of the layout that is chosen.
        needs: What scorers will ask of its rows.
        say: Is told each decision, in one line.
        through_onednn: Whether float32 linears may be computed through oneDNN; None: if they are
            faster there.

    Raises:
        CheckpointRefused: The model's own forward fails, by the model's name and a figure.
    """
    if checkpoint.task == "causal_lm":
        needs = needs | Needs(frozenset({1.0}))
    else:
        needs = needs | Needs(values=True)
    if needs.attention:  # a request's options may choose another reading
        needs = needs | Needs(attention=frozenset(get_args(Reading)))
    requests = [RowRequest(row, needs) for row in random_rows(checkpoint)]
    plain = PlainLayout(checkpoint)
    implementation = checkpoint.model.config._attn_implementation
    naive = own_numbers(checkpoint, plain, requests)
    trial, reason = _compare(checkpoint, requests, naive)
    if reason is not None:
        checkpoint.model.set_attn_implementation(implementation)
        say(f"plain layout, one row at a time: {reason}")
        plain.gap, plain.reason = trial.gap_of(naive), reason
        return plain
    layout = PackedLayout(checkpoint)
    _quicken(layout, checkpoint, trial, say=say, through_onednn=through_onednn)
    _prune(layout, checkpoint, trial, say=say)
    _split(layout, checkpoint, trial, say=say)
    layout.gap = trial.gap(layout)
    say(f"packed layout: differs from the model's own forward in {layout.gap}")
    return layout


def _compare(
    checkpoint: Checkpoint, requests: Sequence[RowRequest], naive: Sequence[Outputs]
) -> tuple[Trial, str | None]:
    """The trial that a layout must pass, and why the packed layout does not; None if it does.

    Args:
        checkpoint: The model.
        requests: The rows of the trial.
        naive: What the model's own forward gives of them, in the model's dtype.
    """
    reason = _cannot_pack(checkpoint)
    if checkpoint.model.dtype == torch.float32:
        trial = Trial(requests, naive, float32_bounds(naive))
    elif (exact := float32_copy(checkpoint)) is None:
        trial = Trial(requests, naive, coarse_bounds(checkpoint, naive))
    else:
        truth = PlainLayout(exact).run(requests)
        in_float32 = Trial(requests, truth, float32_bounds(truth))
        reason = reason or _misfit(exact, in_float32)
        # In the model's dtype, the layout may be twice as far off as the model's own forward is.
        noise = differences(naive, truth)
        bounds = {kind: 2 * noise[kind] + bound for kind, bound in in_float32.bounds.items()}
        trial = Trial(requests, truth, bounds)
    return trial, reason or _misfit(checkpoint, trial)


def _misfit(checkpoint: Checkpoint, trial: Trial) -> str | None:
    """Why the packed layout will not do; None if each row keeps its numbers in either order."""
    try:
        layout = PackedLayout(checkpoint)
        backwards = trial.requests[::-1]
        for outputs in (layout.run(trial.requests), layout.run(backwards)[::-1]):
            gap = trial.gap_of(outputs)
            if not gap.is_within:
                return f"packed differs from the model's own forward in {gap}"
    except Exception as error:  # whatever the model raises means the same: it cannot run packed
        return f"packed raises {type(error).__name__}: {error}"
    return None


def _quicken(
    layout: PackedLayout,
    checkpoint: Checkpoint,
    trial: Trial,
    *,
    say: Callable[[str], None],
    through_onednn: bool | None,
) -> None:
    """Takes the fastest logsumexp, and oneDNN for float32 linears if it may, is faster, and keeps
    every bound."""
    if (compiled := layout.choose_logsumexp()) > 1:
        say(f"the head's logsumexp is compiled: {compiled:.2f} times as fast")
    gain = None
    if through_onednn is None:
        gain = onednn_gain(checkpoint.model)
    if not (gain or through_onednn):
        return
    layout.compute_linears_through(onednn_linear)
    gap = trial.gap(layout)
    if not gap.is_within:
        layout.compute_linears_through(None)
        say(f"float32 linears stay torch's own: through oneDNN they differ in {gap}")
    elif gain:
        say(f"float32 linears through oneDNN: {gain:.2f} times as fast as torch's own")
    else:
        say("float32 linears through oneDNN")


def _prune(
    layout: PackedLayout, checkpoint: Checkpoint, trial: Trial, *, say: Callable[[str], None]
) -> None:
    """Computes the last layer for the wanted tokens only, if it can and keeps every bound."""
    if not layout.prune_last_layer(True):
        return
    fault = trial.fault(layout)
    if fault is None and checkpoint.task == "reward_model":
        fault = trial.of_pooled().fault(layout)
    if fault is not None:
        layout.prune_last_layer(False)
        say(f"the last layer is computed for all tokens: for the wanted ones alone it {fault}")


def _split(
    layout: PackedLayout, checkpoint: Checkpoint, trial: Trial, *, say: Callable[[str], None]
) -> None:
    """Has MLPs take the tokens in pieces, if they can and small pieces keep every bound."""
    if not layout.split_mlps(_PROBED_PIECE):
        return
    fault = trial.fault(layout)
    if fault is None:
        layout.split_mlps(MLP_PIECES[checkpoint.device.type])
    else:
        layout.split_mlps(None)
        say(f"MLPs take all tokens at once: in pieces it {fault}")


def _cannot_pack(checkpoint: Checkpoint) -> str | None:
    """Why a model cannot be packed that short random rows would not show; None if nothing is known
    against it."""
    config = checkpoint.text_config
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    for parameters in nested:
        if parameters.get("rope_type") in _DYNAMIC_ROPES:
            return (
                f"rotary frequencies of type `{parameters['rope_type']}` depend on the longest "
                "row of a call"
            )
    if getattr(config, "attention_chunk_size", None):
        return "attention in chunks does not go through the attention interface"
    return None
