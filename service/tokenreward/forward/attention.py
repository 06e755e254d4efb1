"""Attention over one row of packed segments, and readings of the last layer's, through
transformers' AttentionInterface.

The function registered here honours only what models pass it (scaling, grouped k/v heads,
`sliding_window`, `softcap`, sinks as `s_aux`), so no architecture is known by name. No mask
function is registered for it, on purpose: transformers then builds none, and segments keep to
themselves. It knows no tokens and no heads of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tokenreward.contract import Reading, Row
from tokenreward.forward.attention_weights import Bias, blocks, mix, read
from tokenreward.forward.kernels import QKV, Kernel
from tokenreward.forward.packing import Group, Packing

IMPLEMENTATION = "tokenreward_segments"


class CannotPack(RuntimeError):
    """The model asks of its attention what packed segments cannot give."""


@dataclass(slots=True, eq=False)
class PackedRow:
    """A packed sequence while it runs, and what was captured of it.

    `wanted[i]`: what is to be read of row i's attention in the last layer. `found[i]`: those
    readings, float32. `ends_only`: of the last layer, nothing is needed but what the last token of
    each row attends to. `places[i]`: those of row i, on the device; of the rows in `wanted`, or of
    all if `ends_only`. `num_calls`: how many layers came by.
    """

    packing: Packing
    kernel: Kernel
    num_layers: int
    wanted: Mapping[int, tuple[Row, frozenset[Reading]]] = field(default_factory=dict)
    found: dict[int, dict[Reading, Tensor]] = field(default_factory=dict)
    ends_only: bool = False
    places: Mapping[int, Tensor] = field(default_factory=dict)
    num_calls: int = 0


_current: ContextVar[PackedRow | None] = ContextVar("tokenreward_packed_row", default=None)


@contextmanager
def packed(row: PackedRow) -> Iterator[PackedRow]:
    """Within it, models that run under `IMPLEMENTATION` attend by the segments of `row`."""
    token = _current.set(row)
    try:
        yield row
    finally:
        _current.reset(token)


def segments_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row on itself: query [1, heads, n, d], key and value [1, kv_heads,
    n, d] give [1, n, heads, d].

    Raises CannotPack for a mask, a bias or a non-causal layer, which would be dropped silently
    otherwise.
    """
    row = _current.get()
    is_causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if (
        row is None
        or attention_mask is not None
        or kwargs.get("position_bias") is not None
        or not causal
    ):
        raise CannotPack(
            f"{type(module).__name__} wants a mask, a position bias or two-way attention"
        )
    bias = Bias(
        scaling=kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[-1] ** -0.5,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    row.num_calls += 1
    is_last = row.num_calls == row.num_layers
    if is_last and row.ends_only:
        output = query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])
        _attend_at_ends((query, key, value), row, bias, output)
    else:
        output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
        _attend((query, key, value), row, bias, output)
    if is_last:
        for index, (of, readings) in row.wanted.items():
            places = row.places[index]
            row.found[index] = read(query[0][:, places], key[0][:, places], bias, of, readings)
    return output[None], None


def _attend(qkv: QKV, row: PackedRow, bias: Bias, out: Tensor) -> None:
    """Every token of every group; what no kernel shapes goes in blocks."""
    groups = row.packing.groups
    if row.kernel.windows and bias.softcap is None and bias.sinks is None:
        row.kernel.attend(qkv, groups, bias.scaling, out, window=bias.window)
        return
    by_kernel = [group for group in groups if not bias.shapes(group.longest)]
    if by_kernel:
        row.kernel.attend(
            qkv, groups if len(by_kernel) == len(groups) else by_kernel, bias.scaling, out
        )
    for group in groups:
        if bias.shapes(group.longest):
            _attend_in_blocks(qkv, group, bias, out)


def _attend_at_ends(qkv: QKV, row: PackedRow, bias: Bias, out: Tensor) -> None:
    """The last token of each row alone."""
    for at in row.places.values():
        _attend_range(qkv, at[-1:], at, bias, out)


def _attend_in_blocks(qkv: QKV, group: Group, bias: Bias, out: Tensor) -> None:
    """Attention of one group in float32 blocks of queries, for scores that no kernel shapes; never
    a [n, n] map."""
    prompt = torch.arange(*group.prompt, device=out.device)
    _attend_range(qkv, prompt, prompt, bias, out)
    for response in group.responses:
        own = torch.arange(*response, device=out.device)
        _attend_range(qkv, own, torch.cat([prompt, own]), bias, out)


def _attend_range(qkv: QKV, queries: Tensor, keys: Tensor, bias: Bias, out: Tensor) -> None:
    """Of places: the queries are the last of the keys."""
    q = qkv[0][:, :, queries].float()
    k, v = (tensor[:, :, keys].float() for tensor in qkv[1:])
    mixed = [
        mix(weights, v[:, :, left : left + weights.shape[-1]])
        for left, weights in blocks(q, k, bias)
    ]
    out[queries] = torch.cat(mixed, dim=2)[0].transpose(0, 1).to(out.dtype)


AttentionInterface.register(IMPLEMENTATION, segments_attention)
