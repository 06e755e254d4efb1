"""The fast layout: all rows of a batch in one [1, n] sequence, each shared prompt once, one trunk
pass, heads on the wanted tokens only.

Raises what the model raises; it does not split batches (the engine does) and knows no scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Outputs, Row, RowRequest
from tokenreward.forward.attention import (
    IMPLEMENTATION,
    CannotPack,
    PackedRow,
    attending,
    choose_kernel,
)
from tokenreward.forward.language_head import LanguageHead
from tokenreward.forward.layout import Pending
from tokenreward.forward.packing import Packing, num_packed, pack
from tokenreward.forward.patches import (
    Linear,
    patch_linears,
    prunable_last_layer,
    pruned,
    split_mlps,
    torch_linear,
)
from tokenreward.forward.readout import HiddenStates, Readout
from tokenreward.forward.reduction import fastest
from tokenreward.forward.transfer import to_device


def _wanted(work: Sequence[RowRequest], packing: Packing) -> np.ndarray:
    """Places whose hidden states some head reads; the end of each row always."""
    parts = [places[-1:] for places in packing.places]
    for (row, needs), places in zip(work, packing.places, strict=True):
        if needs.values or needs.reads_logits:
            parts.append(places[row.start - 1 : row.stop])
    return np.unique(np.concatenate(parts))


def _name(of: object) -> str:
    return str(getattr(of, "__name__", type(of).__name__))


class PackedLayout:
    """Runs rows of one checkpoint packed. Switches the model to the segments attention for good."""

    name = "packed"
    runs_ahead = True
    linear: Linear | None = None  # what float32 linears go through, if not torch's own

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._head = LanguageHead.of(checkpoint) if checkpoint.task == "causal_lm" else None
        checkpoint.model.set_attn_implementation(IMPLEMENTATION)
        self._num_layers = int(checkpoint.text_config.num_hidden_layers)
        self._kernel = choose_kernel(checkpoint.device, checkpoint.model.dtype, checkpoint.head_dim)
        self.last_layer: Any = None

    def prune_last_layer(self, yes: bool) -> bool:
        """Whether the last layer computes the wanted tokens only; False if the model has no such
        layer."""
        self.last_layer = prunable_last_layer(self._checkpoint.trunk) if yes else None
        return self.last_layer is not None

    def split_mlps(self, num_tokens: int | None) -> bool:
        """Whether MLPs take so many tokens at a time; False if the model has none. None: all at
        once."""
        return split_mlps(self._checkpoint.trunk, num_tokens)

    def compute_linears_through(self, linear: Linear | None) -> None:
        """Float32 linear layers and the language head through another operator; None gives them
        back torch's own."""
        self.linear = linear
        patch_linears(self._checkpoint.model, linear)
        if self._head is not None:
            self._head = replace(self._head, linear=linear or torch_linear)

    # as the passes are: compiled in another mode, it would be compiled again at the first one
    @torch.inference_mode()
    def choose_logsumexp(self) -> float:
        """Lets the language head take the fastest logsumexp of a GPU; how many times as fast that
        is. A CPU's is the one in place: its tiles stay in the cache, and compiling takes
        seconds."""
        if self._head is None or self._checkpoint.device.type == "cpu":
            return 1.0
        logsumexp, gain = fastest(self._checkpoint.device, self._head.tile_shape)
        self._head = replace(self._head, logsumexp=logsumexp)
        return gain

    @property
    def note(self) -> str:
        """The kernels that it runs, in words."""
        shares = "shares prompts" if self._kernel.shares else "shares none"
        windows = ", windows" if self._kernel.windows else ""
        attention = f"attention by {_name(self._kernel.attend)} ({shares}{windows})"
        return (
            attention
            if self._head is None
            else f"{attention}, logsumexp {_name(self._head.logsumexp)}"
        )

    @property
    def shares(self) -> bool:
        """As its attention kernel does."""
        return self._kernel.shares

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes: no padding, and a shared prompt once."""
        return num_packed(rows, share=self._kernel.shares)

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order. Raises CannotPack like `launch`."""
        return self.launch(requests).result()

    @torch.inference_mode()
    def launch(self, requests: Sequence[RowRequest]) -> Pending:
        """Starts one pass over all rows, and the copy of its outputs to the host.

        Raises:
            CannotPack: The model did not use its attention interface in every layer.
        """
        packing = pack([row for row, _ in requests], share=self._kernel.shares)
        readings = {
            index: (row, needs.attention)
            for index, (row, needs) in enumerate(requests)
            if needs.attention
        }
        context = PackedRow(packing, self._kernel, self._num_layers, readings)
        hidden = self._trunk(context, requests)
        readout = Readout(requests)
        readout.add_attention(context.readings)
        if self._head is not None:
            readout.add_logits(self._head, hidden)
        if any(needs.values or needs.pooled for _, needs in requests):
            readout.add_values(self._checkpoint.value_head, hidden)
        readout.send()
        return readout

    def _trunk(self, context: PackedRow, work: Sequence[RowRequest]) -> HiddenStates:
        packing = context.packing
        at = np.arange(len(packing.ids))
        if self.last_layer is not None:
            at = _wanted(work, packing)
            context.ends_only = not any(needs.values or needs.reads_logits for _, needs in work)
        read = range(len(work)) if context.ends_only else sorted(context.wanted)
        ids, positions, kept, *places = to_device(
            [packing.ids[None], packing.positions[None], at, *(packing.places[i] for i in read)],
            self._checkpoint.device,
        )
        context.places = dict(zip(read, places, strict=True))
        with ExitStack() as stack:
            stack.enter_context(attending(context))
            if self.last_layer is not None:
                stack.enter_context(pruned(self.last_layer, kept))
            output = self._checkpoint.trunk(input_ids=ids, position_ids=positions, use_cache=False)
        if context.num_calls != context.num_layers:
            raise CannotPack(
                f"{context.num_calls} of {context.num_layers} layers went through the attention "
                "interface"
            )
        return HiddenStates(output.last_hidden_state[0], at, packing.places)
