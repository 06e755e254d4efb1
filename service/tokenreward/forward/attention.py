"""Attention over packed segments, registered in transformers' AttentionInterface, and the readings
of the last layer's weights.

The function registered here honours only what models pass to it (scaling, grouped k/v heads,
`sliding_window`, `softcap`, sinks as `s_aux`), so no architecture is known by name. No mask
function is registered for it, on purpose: transformers then builds no mask, and each segment
attends to itself alone. This module knows no token ids and no heads of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from tokenreward.contract import Reading, Row
from tokenreward.forward.attention_weights import Bias, blocks, mix, read
from tokenreward.forward.flash import find_flash
from tokenreward.forward.kernels import QKV, Attend, VarlenKernel, attend_alone, attend_on_cpu
from tokenreward.forward.packing import Packing, longest_row

IMPLEMENTATION = "tokenreward_segments"


@dataclass(slots=True, eq=False)
class PackedRow:
    """A packed sequence while the model runs over it, and what was read of its attention.

    Attributes:
        packing: Where the tokens of each row are.
        kernel: The attention kernel.
        num_layers: Layers of the model, by which the last one is recognised.
        attention_needs: For some rows, by their number: the row, and the readings that are wanted
            of its attention in the last layer.
        readings: The readings [n] of these rows, float32. The last layer fills them in.
        ends_only: Whether nobody reads the last layer's output but at the last token of each row.
        places: For some rows, the places of their tokens, on the device: for every row if
            `ends_only`, else for the rows of `attention_needs`.
        num_calls: How many layers have come by.
        has_window: Whether one of them attends within a window.
    """

    packing: Packing
    kernel: Attend
    num_layers: int
    attention_needs: dict[int, tuple[Row, frozenset[Reading]]] = field(default_factory=dict)
    readings: dict[int, dict[Reading, Tensor]] = field(default_factory=dict)
    ends_only: bool = False
    places: Mapping[int, Tensor] = field(default_factory=dict)
    num_calls: int = 0
    has_window: bool = False


_current: ContextVar[PackedRow | None] = ContextVar("tokenreward_packed_row", default=None)


@contextmanager
def attending(row: PackedRow) -> Iterator[None]:
    """Within it, models that run under `IMPLEMENTATION` attend by the segments of `row`."""
    token = _current.set(row)
    try:
        yield
    finally:
        _current.reset(token)


def choose_kernel(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> Attend:
    """The attention kernel for a device, a dtype and a head.

    Args:
        device: Where the model is.
        dtype: The model's.
        head_dim: Size of the largest attention head; None if it is not known.
    """
    if device.type == "cpu":
        return attend_on_cpu
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim is not None:
        choice = find_flash(device, dtype, head_dim)
        if choice is not None:
            flash, windows = choice
            return VarlenKernel(flash, windows=windows)
    return attend_alone


def segments_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row of the current `PackedRow` on itself.

    Args:
        module: The attention layer that asks.
        query: [1, heads, n, d].
        key: [1, kv_heads, n, d].
        value: [1, kv_heads, n, e]. Latent attention (MLA) has values of another size than keys.
        attention_mask: Must be None.
        **kwargs: What else the layer passes.

    Returns:
        Attended [1, n, heads, e], and no map of weights.

    Raises:
        RuntimeError: The layer passes a mask or a bias, or is not causal: all of it would be lost.
    """
    row = _current.get()
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    has_bias = attention_mask is not None or kwargs.get("position_bias") is not None
    if row is None or has_bias or not is_causal:
        raise RuntimeError(f"{type(module).__name__} wants a mask, a bias or two-way attention")
    bias = _bias(query, kwargs)
    row.has_window = row.has_window or bias.window is not None
    # Kernels take one size of head. Zeros at the end of queries and keys add nothing to a score,
    # and zeros at the end of values are cut off again below.
    size = max(query.shape[-1], value.shape[-1])
    qkv = _widened(query, size), _widened(key, size), _widened(value, size)
    row.num_calls += 1
    is_last = row.num_calls == row.num_layers
    shape = query.shape[2], query.shape[1], size
    if is_last and row.ends_only:
        output = query.new_zeros(shape)
        for places in row.places.values():
            _attend_range(qkv, places[-1:], places, bias, output)
    else:
        output = query.new_empty(shape)
        _attend(qkv, row, bias, output)
    if is_last:
        _read_last_layer(row, query[0], key[0], bias)
    return output[None, ..., : value.shape[-1]], None


def _read_last_layer(row: PackedRow, query: Tensor, key: Tensor, bias: Bias) -> None:
    """Keeps the readings of attention [heads, n, d] that the row needs."""
    for index, (of, names) in row.attention_needs.items():
        places = row.places[index]
        row.readings[index] = read(query[:, places], key[:, places], bias, of, names)


def _widened(heads: Tensor, size: int) -> Tensor:
    """Heads [..., d] with zeros at their end, [..., size]; as they are if they have that size."""
    missing = size - heads.shape[-1]
    return functional.pad(heads, (0, missing)) if missing else heads


def _bias(query: Tensor, arguments: Mapping[str, Any]) -> Bias:
    """What a layer's arguments make of its scores, beyond q and k."""
    scaling = arguments.get("scaling")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return Bias(
        scaling=scaling,
        window=arguments.get("sliding_window"),
        softcap=arguments.get("softcap"),
        sinks=arguments.get("s_aux"),
    )


def _attend(qkv: QKV, row: PackedRow, bias: Bias, out: Tensor) -> None:
    """Every token of every group, in blocks where the kernel cannot shape the scores so."""
    groups = row.packing.groups
    does_windows = isinstance(row.kernel, VarlenKernel) and row.kernel.windows
    if does_windows and bias.softcap is None and bias.sinks is None:
        row.kernel(qkv, groups, bias.scaling, out, window=bias.window)
        return
    in_blocks = [group for group in groups if bias.shapes(longest_row(group))]
    if not in_blocks:
        row.kernel(qkv, groups, bias.scaling, out)  # the same object: a kernel plans by it
    elif len(in_blocks) < len(groups):
        by_kernel = [group for group in groups if not bias.shapes(longest_row(group))]
        row.kernel(qkv, by_kernel, bias.scaling, out)
    for group in in_blocks:  # in float32 blocks of queries; never a map [n, n]
        prompt, *responses = (torch.arange(*part, device=out.device) for part in group)
        _attend_range(qkv, prompt, prompt, bias, out)
        for own in responses:
            _attend_range(qkv, own, torch.cat([prompt, own]), bias, out)


def _attend_range(qkv: QKV, queries: Tensor, keys: Tensor, bias: Bias, out: Tensor) -> None:
    """Attention of the queries at some places, which are the last of the places of the keys."""
    q = qkv[0][:, :, queries].float()
    k, v = (tensor[:, :, keys].float() for tensor in qkv[1:])
    mixed = [
        mix(weights, v[:, :, left : left + weights.shape[-1]])
        for left, weights in blocks(q, k, bias)
    ]
    out[queries] = torch.cat(mixed, dim=2)[0].transpose(0, 1).to(out.dtype)


AttentionInterface.register(IMPLEMENTATION, segments_attention)
