"""The fast layout: all rows of a pass in one sequence [1, n], each shared prompt once, one run of
the trunk, and heads on the wanted tokens only.

It raises what the model raises. It does not split batches (the engine does), and knows no scorers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Outputs, Row, RowRequest
from tokenreward.forward.attention import (
    IMPLEMENTATION,
    PackedRow,
    attending,
    choose_kernel,
)
from tokenreward.forward.kernels import VarlenKernel, attend_alone
from tokenreward.forward.language_head import states_before_head
from tokenreward.forward.layout import Gap, Measure, in_order
from tokenreward.forward.packing import (
    Packing,
    behind_padding,
    lengthened,
    num_packed,
    pack,
    sides,
)
from tokenreward.forward.patches import (
    padded_rows,
    prunable_last_layer,
    pruning,
    split_mlps,
)
from tokenreward.forward.plain import rope_switch
from tokenreward.forward.readout import BatchedLayout, Readout, read_places
from tokenreward.forward.transfer import Pending, to_device, to_ends
from tokenreward.forward.trial import LONGEST_TRIED_WINDOW


class PackedLayout(BatchedLayout):
    """Runs rows of one checkpoint packed. It leaves the model under the segments attention.

    Args:
        checkpoint: The model.
        through_model: Run the model's own call, up to its head, and not its trunk alone.
        with_bounds: Tell every layer where rows start (`cu_seq_lens_q`, `seq_idx`), for layers that
            carry a state along the sequence. Some of transformers' kernels for them begin anew at
            each row then, where the packages of these kernels are installed. No prompt is shared.

    Attributes:
        kernel: The attention kernel.
        shares: Whether a prompt that rows of one pass have in common is computed once.
        last_layer: The last layer, if it computes the wanted tokens only.
    """

    name = "packed"
    runs_ahead = True
    reason: str | None = None

    def __init__(
        self, checkpoint: Checkpoint, *, through_model: bool = False, with_bounds: bool = False
    ) -> None:
        super().__init__(checkpoint)
        self._rope_switch = rope_switch(checkpoint.text_config)
        self.gap: Gap | None = None
        self.measure: Measure | None = None
        self._through_model, self._with_bounds = through_model, with_bounds
        self.last_layer: Any = None
        self._wants_window = _wants_window(checkpoint)
        self._padding_position = checkpoint.padding_position
        checkpoint.model.set_attn_implementation(IMPLEMENTATION)
        self._num_layers = int(checkpoint.text_config.num_hidden_layers)
        self.kernel = choose_kernel(
            checkpoint.placement.first, checkpoint.model.dtype, checkpoint.head_dim
        )
        self.shares = self.kernel is not attend_alone and not with_bounds

    def prune_last_layer(self, yes: bool) -> bool:
        """Has the last layer compute the wanted tokens only, or all tokens again.

        Returns:
            Whether it now computes the wanted tokens only: False if the model has no such layer.
        """
        self.last_layer = prunable_last_layer(self._checkpoint.trunk) if yes else None
        return self.last_layer is not None

    def split_mlps(self, num_tokens: int | None) -> bool:
        """Has MLPs take so many tokens at a time; None: all at once again.

        Returns:
            Whether the model has such MLPs.
        """
        return split_mlps(self._checkpoint.trunk, num_tokens)

    @property
    def note(self) -> str:
        """The kernels that it runs, in words."""
        shares = "shares prompts" if self.shares else "shares none"
        does_windows = isinstance(self.kernel, VarlenKernel) and self.kernel.windows
        windows = ", windows" if does_windows else ""
        note = f"attention by {_name(self.kernel)} ({shares}{windows})"
        if self.language_head is not None:
            note += f", logsumexp {_name(self.language_head.logsumexp)}"
        return note

    def num_computed(self, rows: Sequence[Row]) -> int:
        """Tokens that a pass over these rows computes: a shared prompt once, and no padding."""
        num_tokens = 0
        for side in sides(rows, self._rope_switch):
            num_tokens += num_packed([rows[i] for i in side], share=self.shares)
        return num_tokens

    def run(self, requests: Sequence[RowRequest]) -> list[Outputs]:
        """Outputs of each row, in order. Raises RuntimeError like `launch`."""
        return self.launch(requests).result()

    @torch.inference_mode()
    def launch(self, requests: Sequence[RowRequest]) -> Pending[list[Outputs]]:
        """Starts a pass: one call of the trunk, or two if rotary frequencies switch between rows.

        Raises:
            RuntimeError: The model did not use its attention interface in every layer.
        """
        calls = sides([row for row, _ in requests], self._rope_switch)
        parts = [(call, self._launch_call(requests, call)) for call in calls]
        return Pending(partial(in_order, parts))

    def _launch_call(
        self, requests_of_pass: Sequence[RowRequest], call: Sequence[int]
    ) -> Pending[list[Outputs]]:
        """Starts one call of the trunk, for some rows of a pass, and the copy of the heads' numbers
        to the host."""
        requests = [requests_of_pass[i] for i in call]
        rows = [row for row, _ in requests]
        packing = pack(rows, share=self.shares)
        if self._padding_position is not None:
            packing = behind_padding(packing, rows, self._padding_position)
        if self.linear is not None and not self._with_bounds:
            packing = lengthened(packing, padded_rows(len(packing.ids)))  # or each linear copies it
        context = PackedRow(packing, self.kernel, self._num_layers)
        for index, (row, needs) in enumerate(requests):
            if needs.attention and self._with_bounds:
                raise RuntimeError("which layer with attention is the last is not known")
            if needs.attention:
                context.attention_needs[index] = (row, needs.attention)
        states, at = self._run_trunk(context, requests)
        if self._wants_window and not context.has_window:
            raise RuntimeError("no layer tells its attention of the sliding window of config.json")
        readout = Readout(requests, states, at, packing.places)
        readout.add_attention(context.readings)
        if self.language_head is not None:
            readout.add_logits(self.language_head)
        if self._value_head is not None:
            readout.add_values(self._value_head)
        return readout.send()

    def _run_trunk(
        self, context: PackedRow, requests: Sequence[RowRequest]
    ) -> tuple[Tensor, np.ndarray]:
        """Runs all layers. Raises RuntimeError.

        Returns:
            The last hidden states [m, h], and their places [m] in the packed sequence, ascending.
        """
        packing = context.packing
        at = np.arange(len(packing.ids))
        if self.last_layer is not None:
            at = read_places(requests, packing.places, self.gate)
            context.ends_only = self.gate is None and not any(
                needs.values or needs.reads_logits for _, needs in requests
            )
        rows = range(len(requests)) if context.ends_only else sorted(context.attention_needs)
        placement = self._checkpoint.placement
        ids, positions, states_at, *places = to_ends(
            [packing.ids[None], packing.positions[None]],
            [at, *(packing.places[i] for i in rows)],
            placement.first,
            placement.last,
        )
        context.places = dict(zip(rows, places, strict=True))
        bounds = _bounds(packing, placement.first) if self._with_bounds else {}
        with ExitStack() as stack:
            stack.enter_context(attending(context))
            if self.last_layer is not None:
                stack.enter_context(pruning(self.last_layer, states_at))
            hidden = states_before_head(
                self._checkpoint,
                through_model=self._through_model,
                input_ids=ids,
                position_ids=positions,
                **bounds,
            )
        # Some layers of a hybrid have no attention. If no layer goes through the interface, they
        # attend behind a mask [n, n] that transformers makes of the positions: right, but large.
        is_hybrid = self._with_bounds and 0 < context.num_calls < context.num_layers
        if context.num_calls != context.num_layers and not is_hybrid:
            raise RuntimeError(
                f"{context.num_calls} of {context.num_layers} layers went through the attention "
                "interface"
            )
        return hidden[0], at


def _bounds(packing: Packing, device: torch.device) -> dict[str, Tensor]:
    """Where rows start, as the arguments of layers that carry a state along the sequence."""
    lengths = [len(of_row) for of_row in packing.places]
    row_of_token = np.repeat(np.arange(len(lengths)), lengths)
    starts, of_tokens = to_device([np.cumsum([0, *lengths]), row_of_token[None]], device)
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "seq_idx": of_tokens.int()}


def _wants_window(checkpoint: Checkpoint) -> bool:
    """Whether a model's layers must tell their attention of a window.

    Some models write the window into the mask alone, which no packed layer has. A trial shows that,
    unless the window is longer than the rows of trials.
    """
    config = checkpoint.text_config
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not isinstance(window, int) or (kinds and not any("sliding" in kind for kind in kinds)):
        return False
    limit = checkpoint.max_positions
    return window > LONGEST_TRIED_WINDOW and (limit is None or window < limit)


def _name(of: object) -> str:
    return str(getattr(of, "__name__", type(of).__name__))
