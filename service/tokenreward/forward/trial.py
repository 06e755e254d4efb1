"""A trial of a layout: random rows, the numbers that the model's own forward gives of them, and how
far from these numbers a layout may be.

The numbers come from the plain layout, which is the model's own call. This module decides nothing:
that is for `probe`.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.refusal import CheckpointRefused, one_line
from tokenreward.contract import Outputs, Row, RowRequest
from tokenreward.forward.layout import (
    ByKind,
    Gap,
    Layout,
    differences,
    float32_bounds,
    gap,
    largest,
    numbers,
)
from tokenreward.forward.plain import PlainLayout, rope_switch

_LENGTHS = (9, 61, 2, 23)
LONGEST_TRIED_WINDOW = 2048
_SHARE_OF_FREE_MEMORY = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Rows to run, what they must give, and how far from that each kind of number may be."""

    requests: Sequence[RowRequest]
    truth: Sequence[Outputs]
    bounds: ByKind

    def gap_of(self, outputs: Sequence[Outputs]) -> Gap:
        """How far outputs of the rows, in order, are from the truth."""
        return gap(differences(outputs, self.truth), self.bounds)

    def gap(self, layout: Layout) -> Gap:
        """How far a layout is from the truth. Raises what the layout raises."""
        return self.gap_of(layout.run(self.requests))

    def fault(self, layout: Layout) -> str | None:
        """What a layout does that it must not, as a predicate; None if it keeps every bound."""
        try:
            difference = self.gap(layout)
        except Exception as error:  # a part of the model gives something else than hidden states
            return f"raises {type(error).__name__}"
        return None if difference.is_within else f"differs in {difference}"

    def of_pooled(self) -> Trial:
        """The same rows, of which only the pooled value is wanted."""
        requests = [
            RowRequest(row, replace(needs, values=False, pooled=True))
            for row, needs in self.requests
        ]
        return Trial(
            requests, [replace(outputs, values=None) for outputs in self.truth], self.bounds
        )


def random_rows(checkpoint: Checkpoint) -> list[Row]:
    """Rows of random tokens, from a fixed seed, of ragged lengths.

    One of them is longer than a sliding window, and one than the rows that are read with short
    rotary factors, if that is not too long to try. The last one shares its prompt with the longest
    of the others. Where a gate reads the prompt's end, each row begins with the tokens that end a
    prompt.
    """
    config = checkpoint.text_config
    lengths = list(_LENGTHS)
    bounds = {getattr(config, "sliding_window", None) or 0, rope_switch(config) or 0}
    lengths += sorted(bound + 9 for bound in bounds if 0 < bound <= LONGEST_TRIED_WINDOW)
    first = np.empty(0, dtype=np.int64)
    is_headed = checkpoint.task == "reward_model" and not checkpoint.is_classifier
    if is_headed and checkpoint.value_head.gate is not None:
        first = np.asarray(checkpoint.value_head.gate.end)
    limit = checkpoint.max_positions
    if limit is not None:
        lengths = [length for length in lengths if len(first) + length <= limit]
    generator = np.random.default_rng(0)
    pad_id = getattr(config, "pad_token_id", None) or 0
    tokens = np.setdiff1d(np.arange(min(checkpoint.num_labels, 50_000)), [pad_id])
    rows = []
    for length in lengths:
        ids = np.concatenate([first, generator.choice(tokens, size=length)])
        rows.append(Row(ids=ids, start=len(first) + max(1, length // 3), stop=len(ids)))
    longest = max(rows, key=lambda row: len(row.ids))
    ending = generator.choice(tokens, size=max(1, (len(longest.ids) - longest.start) // 2))
    ids = np.concatenate([longest.ids[: longest.start], ending])
    return [*rows, Row(ids=ids, start=longest.start, stop=len(ids))]


def own_numbers(
    checkpoint: Checkpoint, plain: PlainLayout, requests: Sequence[RowRequest]
) -> list[Outputs]:
    """What the model's own forward gives of the rows.

    Raises:
        CheckpointRefused: The forward raises, or gives numbers that are not finite.
    """
    name = type(checkpoint.model).__name__
    try:
        outputs = plain.run(requests)
    except CheckpointRefused:
        raise
    except Exception as error:
        raise CheckpointRefused(f"{name} cannot be read: {one_line(error)}") from error
    for row in outputs:
        if not all(np.isfinite(values).all() for values in numbers(row).values()):
            raise CheckpointRefused(
                f"{name} gives numbers that are not finite on random tokens, in its own forward"
            )
    return outputs


def float32_copy(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint with a copy of its model in float32; None if there is no room for one, or if
    its weights are still quantised: transformers casts no such model."""
    if getattr(checkpoint.model, "hf_quantizer", None) is not None:
        return None
    num_bytes: Counter[torch.device] = Counter()
    for parameter in checkpoint.model.parameters():
        num_bytes[parameter.device] += 4 * parameter.numel()
    if any(num_bytes[device] > _SHARE_OF_FREE_MEMORY * _free_bytes(device) for device in num_bytes):
        return None
    return replace(checkpoint, model=copy.deepcopy(checkpoint.model).float())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def exact_trial(requests: Sequence[RowRequest], truth: Sequence[Outputs]) -> Trial:
    """The trial of a layout in float32, by what the model's own forward gives in float32."""
    return Trial(requests, truth, float32_bounds(truth))


def trial_in_dtype(
    requests: Sequence[RowRequest], naive: Sequence[Outputs], truth: Sequence[Outputs]
) -> Trial:
    """The trial of a layout in a dtype that is not float32: it may be twice as far from the truth
    as the model's own forward is in this dtype.

    Args:
        requests: The rows.
        naive: What the model's own forward gives of them in the dtype.
        truth: What it gives in float32.
    """
    noise = differences(naive, truth)
    bounds = {kind: 2 * noise[kind] + bound for kind, bound in float32_bounds(truth).items()}
    return Trial(requests, truth, bounds)


def coarse_bounds(checkpoint: Checkpoint, outputs: Sequence[Outputs]) -> ByKind:
    """What rounding in the model's dtype explains, where no float32 truth can measure it."""
    eps = float(torch.finfo(checkpoint.model.dtype).eps)
    return {kind: 8 * eps * max(size, eps) for kind, size in largest(outputs).items()}
