"""The load-time probe: does the packed layout give what the model's own forward gives? If not, the
plain one serves.

Random ragged rows go through both, in company and in another order. It is what makes "any
checkpoint" safe: state-space layers, ALiBi, unknown logit scales and whatever else the packed path
cannot know show as a figure here, before the first request. A model served in bf16 is probed as a
float32 copy first, if that fits, because in bf16 rounding hides small faults.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.contract import Needs, Outputs, Reading, Row, RowRequest
from tokenreward.forward.comparison import (
    ByKind,
    Gap,
    differences,
    float32_bounds,
    gap,
    largest,
    numbers,
)
from tokenreward.forward.layout import Layout, LayoutChoice
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.patches import MLP_PIECES, onednn_gain, onednn_linear
from tokenreward.forward.plain import PlainLayout

Work = list[RowRequest]

_LENGTHS = (9, 61, 2, 23)
_LONGEST_WINDOW = 2048
_PROBED_PIECE = 7  # tokens: several pieces, and one that is smaller
_DYNAMIC_ROPES = ("dynamic", "longrope")
_SHARE_OF_FREE_MEMORY = 0.5


def choose_layout(
    checkpoint: Checkpoint,
    needs: Needs,
    *,
    say: Callable[[str], None],
    through_onednn: bool | None = None,
) -> LayoutChoice:
    """Packed if it is exact, else plain. Raises CheckpointRefused, by name and figure, if plain
    fails, too.

    `through_onednn`: whether float32 linears may go there; None: if they are faster there.
    """
    needs = needs | (
        Needs(frozenset({1.0})) if checkpoint.task == "causal_lm" else Needs(values=True)
    )
    if needs.attention:
        needs = needs | Needs(
            attention=frozenset(get_args(Reading))
        )  # a request's options may choose another
    work = [RowRequest(row, needs) for row in _rows(checkpoint)]
    plain = PlainLayout(checkpoint)
    implementation = checkpoint.model.config._attn_implementation
    naive = _own_numbers(checkpoint, plain, work)
    truth, bounds, exact = naive, _coarse_bounds(checkpoint, naive), _in_float32(checkpoint)
    if exact is not None:
        truth = naive if exact is checkpoint else PlainLayout(exact).run(work)
        bounds = float32_bounds(truth)
    reason = _cannot_pack(checkpoint)
    if exact is not None:
        reason = reason or _misfit(exact, work, truth, bounds)
    if exact is not checkpoint and exact is not None:
        noise = differences(naive, truth)
        bounds = {kind: 2 * noise[kind] + bound for kind, bound in bounds.items()}
        reason = reason or _misfit(checkpoint, work, truth, bounds)
    elif exact is None:
        reason = reason or _misfit(checkpoint, work, truth, bounds)
    if reason is None:
        layout, known = PackedLayout(checkpoint), (work, truth, bounds)
        _quicken(layout, checkpoint, known, say=say, through_onednn=through_onednn)
        _prune(layout, checkpoint, known, say=say)
        _split(layout, MLP_PIECES[checkpoint.device.type], known, say=say)
        measured = _measure(known, layout)
        say(f"packed layout: differs from the model's own forward in {measured}")
        return LayoutChoice(layout, measured, measure=partial(_measure, known))
    checkpoint.model.set_attn_implementation(implementation)
    say(f"plain layout, one row at a time: {reason}")
    return LayoutChoice(plain, gap(differences(naive, truth), bounds), reason)


def _measure(known: tuple[Work, list[Outputs], ByKind], layout: Layout) -> Gap:
    work, truth, bounds = known
    return gap(differences(layout.run(work), truth), bounds)


def _quicken(
    layout: PackedLayout,
    checkpoint: Checkpoint,
    known: tuple[Work, list[Outputs], ByKind],
    *,
    say: Callable[[str], None],
    through_onednn: bool | None,
) -> None:
    """Takes the fastest logsumexp; computes float32 linears through oneDNN if that is faster and
    keeps every bound."""
    if (compiled := layout.choose_logsumexp()) > 1:
        say(f"the head's logsumexp is compiled: {compiled:.2f} times as fast")
    gain = onednn_gain(checkpoint.model) if through_onednn is None else None
    if not (gain or through_onednn):
        return
    layout.compute_linears_through(onednn_linear)
    found = _measure(known, layout)
    if found.is_within:
        how = f": {gain:.2f} times as fast as torch's own" if gain else ""
        say(f"float32 linears through oneDNN{how}")
    else:
        layout.compute_linears_through(None)
        say(f"float32 linears stay torch's own: through oneDNN they differ in {found}")


def _prune(
    layout: PackedLayout,
    checkpoint: Checkpoint,
    known: tuple[Work, list[Outputs], ByKind],
    *,
    say: Callable[[str], None],
) -> None:
    """Computes the last layer for the wanted tokens only, if it is built of the usual parts and
    keeps every bound."""
    work, truth, bounds = known
    if not layout.prune_last_layer(True):
        return
    tries = [(work, truth)]
    if checkpoint.task == "reward_model":
        ends = [RowRequest(row, replace(needs, values=False, pooled=True)) for row, needs in work]
        tries.append((ends, [replace(outputs, values=None) for outputs in truth]))
    for asked, expected in tries:
        try:
            found = gap(differences(layout.run(asked), expected), bounds)
            fault = None if found.is_within else f"differs in {found}"
        except Exception as error:  # its parts give something else than hidden states
            fault = f"raises {type(error).__name__}"
        if fault is not None:
            layout.prune_last_layer(False)
            say(f"the last layer is computed for all tokens: for the wanted ones alone it {fault}")
            return


def _split(
    layout: PackedLayout,
    piece: int,
    known: tuple[Work, list[Outputs], ByKind],
    *,
    say: Callable[[str], None],
) -> None:
    """Has MLPs take so many tokens at a time, if pieces keep every bound."""
    work, truth, bounds = known
    if not layout.split_mlps(_PROBED_PIECE):
        return
    try:
        found = gap(differences(layout.run(work), truth), bounds)
        fault = None if found.is_within else f"it differs in {found}"
    except Exception as error:  # it gives something else than hidden states
        fault = f"it raises {type(error).__name__}"
    layout.split_mlps(piece if fault is None else None)
    if fault is not None:
        say(f"MLPs take all tokens at once: in pieces {fault}")


def _misfit(checkpoint: Checkpoint, work: Work, truth: list[Outputs], bounds: ByKind) -> str | None:
    """Why the packed layout will not do, if it will not: in this order and backwards, each row
    keeps its numbers."""
    try:
        layout = PackedLayout(checkpoint)
        for ours in (layout.run(work), layout.run(work[::-1])[::-1]):
            found = gap(differences(ours, truth), bounds)
            if not found.is_within:
                return f"packed differs from the model's own forward in {found}"
    except Exception as error:  # whatever the model raises means the same: it cannot run packed
        return f"packed raises {type(error).__name__}: {error}"
    return None


def _in_float32(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint itself if it is float32, else a copy that is, else None because there is no
    room for one."""
    if checkpoint.model.dtype == torch.float32:
        return checkpoint
    num_bytes = 4 * sum(parameter.numel() for parameter in checkpoint.model.parameters())
    if checkpoint.device.type == "cuda":
        free = torch.cuda.mem_get_info(checkpoint.device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > _SHARE_OF_FREE_MEMORY * free:
        return None
    return replace(checkpoint, model=copy.deepcopy(checkpoint.model).float())


def _coarse_bounds(checkpoint: Checkpoint, naive: list[Outputs]) -> ByKind:
    """What rounding in the model's dtype explains, where there is no float32 truth to measure it
    by."""
    eps = float(torch.finfo(checkpoint.model.dtype).eps)
    return {kind: 8 * eps * max(size, eps) for kind, size in largest(naive).items()}


def _rows(checkpoint: Checkpoint) -> list[Row]:
    """Seeded random rows; one is longer than a sliding window, if that is not too long to try."""
    config = checkpoint.text_config
    lengths = list(_LENGTHS)
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and 0 < window <= _LONGEST_WINDOW:
        lengths.append(window + 9)
    limit = checkpoint.max_positions
    lengths = [length for length in lengths if limit is None or length <= limit]
    generator = np.random.default_rng(0)
    allowed = np.setdiff1d(
        np.arange(min(checkpoint.num_labels, 50_000)), [getattr(config, "pad_token_id", None) or 0]
    )
    rows = [
        Row(ids=generator.choice(allowed, size=length), start=max(1, length // 3), stop=length)
        for length in lengths
    ]
    longest = max(rows, key=lambda row: len(row.ids))
    ending = generator.choice(allowed, size=max(1, (len(longest.ids) - longest.start) // 2))
    shared = np.concatenate([longest.ids[: longest.start], ending])
    return [
        *rows,
        Row(ids=shared, start=longest.start, stop=len(shared)),
    ]  # a prompt that two rows share


def _own_numbers(checkpoint: Checkpoint, plain: PlainLayout, work: Work) -> list[Outputs]:
    name = type(checkpoint.model).__name__
    try:
        own = plain.run(work)
    except CheckpointRefused:
        raise
    except Exception as error:
        raise CheckpointRefused(
            f"{name} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if not all(
        np.isfinite(values).all() for outputs in own for values in numbers(outputs).values()
    ):
        raise CheckpointRefused(
            f"{name} gives numbers that are not finite on random tokens, in its own forward"
        )
    return own


def _cannot_pack(checkpoint: Checkpoint) -> str | None:
    """What short random rows would not show."""
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
