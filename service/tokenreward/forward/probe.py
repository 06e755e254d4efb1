"""The load-time probe: the first of the packed, the padded and the plain layout that gives what the
model's own forward gives.

Random ragged rows go through both, in company and in another order. It is what makes "any
checkpoint" safe: state-space layers, ALiBi, unknown logit scales, and whatever else a layout
cannot know, show as a figure here, before the first request. A model that is served in bf16
is probed as a float32 copy first, if there is room for one, because rounding in bf16 hides small
faults. The probe knows no architecture by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import one_line
from tokenreward.contract import Needs, Outputs, Reading, RowRequest
from tokenreward.forward.layout import Layout
from tokenreward.forward.own_forward import OwnForward
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.padded import PaddedLayout
from tokenreward.forward.patches import MLP_PIECES, onednn_gain, onednn_linear
from tokenreward.forward.plain import PlainLayout, rope_parameters
from tokenreward.forward.soundness import refuse_unsound
from tokenreward.forward.trial import (
    Trial,
    coarse_bounds,
    exact_trial,
    float32_copy,
    own_numbers,
    random_rows,
    trial_in_dtype,
)

_PROBED_PIECE = 7  # tokens: several pieces of a row, of which one is smaller
# The layouts in the order in which they are tried, each with the ways to make it.
_WAYS: dict[
    type[PackedLayout | PaddedLayout],
    tuple[Callable[[Checkpoint], PackedLayout | PaddedLayout], ...],
] = {
    PackedLayout: (
        PackedLayout,
        partial(PackedLayout, through_model=True),
        partial(PackedLayout, with_bounds=True),
    ),
    PaddedLayout: (PaddedLayout, partial(PaddedLayout, through_model=True)),
}
_ONE_CALL = 10**6  # see `PaddedLayout.call_tokens`: all rows of a trial are padded to one length


def choose_layout(
    checkpoint: Checkpoint,
    needs: Needs,
    *,
    say: Callable[[str], None],
    through_onednn: bool | None = None,
) -> Layout:
    """The packed layout if it is exact, else the padded one if that is, else the plain one.

    The layout then takes each of its faster ways that keeps every bound, too.

    Args:
        checkpoint: The model. It is left under the attention of the layout that is chosen.
        needs: What scorers will ask of its rows.
        say: Is told each decision, in one line.
        through_onednn: Whether float32 linears go through oneDNN; None: if they are faster there.

    Raises:
        CheckpointRefused: The model's own forward fails, or gives numbers that no layout makes
            right, by the model's name and a figure.
    """
    requests = _requests(checkpoint, needs)
    plain = PlainLayout(checkpoint)
    naive = own_numbers(checkpoint, plain, requests)
    own = _own_forward(checkpoint, requests, say=say)
    trials = _trials(checkpoint, requests, naive)
    refuse_unsound(trials[0][0], requests)
    trial = trials[-1][1]
    layout = _first_exact(checkpoint, trials, plain)
    if own is not None:
        own.is_exact = trials[0][0].model.dtype == torch.float32
        layout.measure = partial(own.gaps, layout)
    del trials  # the float32 copy of the model, too
    if isinstance(layout, PlainLayout):
        layout.gap = trial.gap_of(naive)
        say(f"plain layout, one row at a time: {layout.reason}")
        return layout
    _quicken(layout, checkpoint, trial, say=say, through_onednn=through_onednn)
    if isinstance(layout, PackedLayout):
        _prune(layout, checkpoint, trial, say=say)
        _split(layout, checkpoint, trial, say=say)
    else:
        layout.runs_ahead = not needs.attention
    layout.gap = trial.gap(layout)
    line = f"{layout.name} layout: differs from the model's own forward in {layout.gap}"
    say("; ".join(filter(None, [line, layout.reason])))
    return layout


def _requests(checkpoint: Checkpoint, needs: Needs) -> list[RowRequest]:
    """The random rows of the trials, with all that scorers and requests may ask of a row."""
    if checkpoint.task == "causal_lm":
        needs = needs | Needs(frozenset({1.0}))
    else:
        needs = needs | Needs(values=True)
    if needs.attention:  # a request's options may choose another reading
        needs = needs | Needs(attention=frozenset(get_args(Reading)))
    return [RowRequest(row, needs) for row in random_rows(checkpoint)]


def _own_forward(
    checkpoint: Checkpoint, requests: Sequence[RowRequest], *, say: Callable[[str], None]
) -> OwnForward | None:
    """The model's own forward for later, before a layout changes the model. None if it will not be
    wanted, because quantised weights cannot be changed, or if the model cannot be copied."""
    if getattr(checkpoint.model, "hf_quantizer", None) is not None:
        return None
    try:
        return OwnForward(checkpoint, requests)
    except Exception as error:  # the model's own code may have parts of all kinds
        say(f"it will not be probed again after a push of weights: {one_line(error)}")
        return None


def _trials(
    checkpoint: Checkpoint, requests: Sequence[RowRequest], naive: Sequence[Outputs]
) -> list[tuple[Checkpoint, Trial]]:
    """The trials that a layout must pass, each with the model that it is of.

    Args:
        checkpoint: The model.
        requests: The rows of the trials.
        naive: What the model's own forward gives of them, in the model's dtype.

    Returns:
        A trial of a float32 copy of the model, if it is served in another dtype and there is room
        for one, and a trial of the model itself.
    """
    if checkpoint.model.dtype == torch.float32:
        return [(checkpoint, exact_trial(requests, naive))]
    exact = float32_copy(checkpoint)
    if exact is None:
        return [(checkpoint, Trial(requests, naive, coarse_bounds(checkpoint, naive)))]
    truth = PlainLayout(exact).run(requests)
    return [
        (exact, exact_trial(requests, truth)),
        (checkpoint, trial_in_dtype(requests, naive, truth)),
    ]


def _first_exact(
    checkpoint: Checkpoint, trials: Sequence[tuple[Checkpoint, Trial]], plain: PlainLayout
) -> PackedLayout | PaddedLayout | PlainLayout:
    """The first layout that passes every trial, with the reasons why it is not one before it.

    Args:
        checkpoint: The model. It is left under the attention of the layout.
        trials: See `_trials`.
        plain: The layout if no other passes.
    """
    reasons: dict[str, str] = {}
    for kind, makes in _WAYS.items():
        for make in makes:
            reason = _unseen_fault(checkpoint, kind)
            for model, trial in trials:
                reason = reason or _misfit(make, model, trial)
            if reason is None:
                layout = make(checkpoint)
                reasons.pop(kind.name, None)
                layout.reason = "; ".join(reasons.values()) or None
                return layout
            reasons.setdefault(kind.name, f"{kind.name} {reason}")
    plain.reason = "; ".join(reasons.values())
    return plain


def _misfit(
    make: Callable[[Checkpoint], PackedLayout | PaddedLayout], checkpoint: Checkpoint, trial: Trial
) -> str | None:
    """Why a layout will not do, as a predicate; None if each row keeps its numbers in either order.

    Then the model is left under the layout's attention.

    Args:
        make: Makes the layout.
        checkpoint: The model.
        trial: What the layout must pass.
    """
    implementation = checkpoint.model.config._attn_implementation
    fault = None
    try:
        layout = make(checkpoint)
        if isinstance(layout, PaddedLayout):
            layout.call_tokens = _ONE_CALL
        backwards = trial.requests[::-1]
        for outputs in (layout.run(trial.requests), layout.run(backwards)[::-1]):
            gap = trial.gap_of(outputs)
            if not gap.is_within:
                fault = f"differs from the model's own forward in {gap}"
                break
    except Exception as error:  # whatever the model raises means the same: it cannot be run so
        fault = f"raises {one_line(error)}"
    if fault is not None and checkpoint.model.config._attn_implementation != implementation:
        checkpoint.model.set_attn_implementation(implementation)
    return fault


def _quicken(
    layout: PackedLayout | PaddedLayout,
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
        layout.split_mlps(MLP_PIECES[checkpoint.placement.first.type])
    else:
        layout.split_mlps(None)
        say(f"MLPs take all tokens at once: in pieces it {fault}")


def _unseen_fault(checkpoint: Checkpoint, kind: type[PackedLayout | PaddedLayout]) -> str | None:
    """Why a layout will not do that short random rows would not show, as a predicate; None if
    nothing is known against it."""
    ropes = rope_parameters(checkpoint.text_config)
    if any(parameters.get("rope_type") == "dynamic" for parameters in ropes):
        return (
            "shares rotary frequencies of type `dynamic` between rows, which depend on the longest "
            "row of a call"
        )
    if kind is PackedLayout and getattr(checkpoint.text_config, "attention_chunk_size", None):
        return "knows no attention in chunks, which does not go through the attention interface"
    return None
