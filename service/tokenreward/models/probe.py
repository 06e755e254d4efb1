"""The load-time probe: does the packed layout give what the model's own forward gives? If not, the plain one serves.

Random ragged rows go through both. It is what makes "any checkpoint" safe: state-space layers, ALiBi, unknown logit
scales and whatever else the packed path cannot know show as a figure here, before the first request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenreward.contract import Needs, Outputs, Row
from tokenreward.models.checkpoint import Checkpoint, CheckpointRefused
from tokenreward.models.packed import PackedLayout
from tokenreward.models.plain import PlainLayout

Layout = PackedLayout | PlainLayout

_LENGTHS = (9, 41, 2, 23)
_LONGEST_WINDOW = 2048
_DYNAMIC_ROPES = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The layout that serves, its largest difference to the model's own forward, the bound, why it is not packed."""

    layout: Layout
    difference: float
    bound: float
    reason: str | None = None


def choose_layout(checkpoint: Checkpoint, needs: Needs, *, say: Callable[[str], None]) -> Verdict:
    """Packed if it is exact, else plain. Raises CheckpointRefused, by name and figure, if plain fails, too."""
    needs = needs | (Needs(frozenset({1.0})) if checkpoint.task == "causal_lm" else Needs(values=True))
    work = [(row, needs) for row in _rows(checkpoint)]
    plain = PlainLayout(checkpoint)
    implementation = checkpoint.model.config._attn_implementation
    truth = _plain_truth(checkpoint, plain, work)
    if checkpoint.task == "reward_model":
        say(f"pooled value: differs from the model's own call by {_own_call_difference(checkpoint, work, truth):.1e}")
    bound = tolerance(checkpoint, truth)
    reason = _cannot_pack(checkpoint)
    difference = 0.0
    if reason is None:
        try:
            layout = PackedLayout(checkpoint)
            difference = largest_difference(layout.run(work), truth)
            if difference <= bound:
                say(f"packed layout: differs from the model's own forward by {difference:.1e} (bound {bound:.1e})")
                return Verdict(layout, difference, bound)
            reason = f"packed differs from the model's own forward by {difference:.1e} (bound {bound:.1e})"
        except Exception as error:  # whatever the model raises means the same: it cannot run packed
            reason = f"packed raises {type(error).__name__}: {error}"
        checkpoint.model.set_attn_implementation(implementation)
    say(f"plain layout, one row at a time: {reason}")
    return Verdict(plain, difference, bound, reason)


def largest_difference(ours: Sequence[Outputs], truth: Sequence[Outputs]) -> float:
    """Over all numbers of all rows; infinite if one of ours is not finite."""
    worst = 0.0
    for left, right in zip(ours, truth, strict=True):
        for a, b in zip(_numbers(left), _numbers(right), strict=True):
            difference = np.abs(a.astype(np.float64) - b)
            worst = max(worst, float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0)))
    return worst


def tolerance(checkpoint: Checkpoint, truth: Sequence[Outputs]) -> float:
    """fp32: 1e-5 * max(1, largest number read). Below that precision, what rounding in that dtype explains."""
    largest = max(float(np.abs(numbers).max(initial=0.0)) for outputs in truth for numbers in _numbers(outputs))
    dtype = next(checkpoint.model.parameters()).dtype
    if dtype == torch.float32:
        return 1e-5 * max(1.0, largest)
    return 8 * float(torch.finfo(dtype).eps) * largest


def _numbers(outputs: Outputs) -> list[np.ndarray]:
    found = [outputs.chosen, *(outputs.lse[t] for t in sorted(outputs.lse)), outputs.values, outputs.attention]
    pooled = [] if outputs.pooled is None else [np.asarray([outputs.pooled])]
    return [numbers for numbers in found if numbers is not None] + pooled


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
    allowed = np.setdiff1d(np.arange(min(checkpoint.vocab_size, 50_000)), [getattr(config, "pad_token_id", None) or 0])
    return [
        Row(ids=generator.choice(allowed, size=length), start=max(1, length // 3), stop=length) for length in lengths
    ]


def _plain_truth(checkpoint: Checkpoint, plain: PlainLayout, work: list[tuple[Row, Needs]]) -> list[Outputs]:
    name = type(checkpoint.model).__name__
    try:
        truth = plain.run(work)
    except Exception as error:
        raise CheckpointRefused(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    if not all(np.isfinite(numbers).all() for outputs in truth for numbers in _numbers(outputs)):
        raise CheckpointRefused(f"{name} gives numbers that are not finite on random tokens, in its own forward")
    return truth


@torch.inference_mode()
def _own_call_difference(checkpoint: Checkpoint, work: list[tuple[Row, Needs]], truth: list[Outputs]) -> float:
    """Our pooled value beside `model(ids).logits`. Raises CheckpointRefused if trunk and head are not all there is."""
    worst = 0.0
    for (row, _), outputs in zip(work, truth, strict=True):
        logits = checkpoint.model(input_ids=torch.from_numpy(row.ids).to(checkpoint.device)[None]).logits[0].float()
        own = float(logits[0] if len(logits) == 1 else logits[1] - logits[0])
        worst = max(worst, abs(own - (outputs.pooled or 0.0)))
    bound = tolerance(checkpoint, truth)
    if worst > bound:
        name = type(checkpoint.model).__name__
        raise CheckpointRefused(
            f"{name}: trunk and `score` head differ from its own call by {worst:.1e} (bound {bound:.1e})"
        )
    return worst


def _cannot_pack(checkpoint: Checkpoint) -> str | None:
    """What short random rows would not show."""
    config = checkpoint.text_config
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    for parameters in nested:
        if parameters.get("rope_type") in _DYNAMIC_ROPES:
            return f"rotary frequencies of type `{parameters['rope_type']}` depend on the longest row of a call"
    if getattr(config, "attention_chunk_size", None):
        return "attention in chunks does not go through the attention interface"
    return None
