"""Attention over one row of packed segments, and readings of the last layer's, through transformers'
AttentionInterface.

The function registered here honours only what models pass it (scaling, grouped k/v heads, `sliding_window`, `softcap`,
sinks as `s_aux`), so no architecture is known by name. No mask function is registered for it, on purpose: transformers
then builds none, and segments keep to themselves. It knows no tokens and no heads of the model.
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
from tokenreward.models.attention_weights import Bias, blocks, read

IMPLEMENTATION = "tokenreward_segments"


class CannotPack(RuntimeError):
    """The model asks of its attention what packed segments cannot give."""


@dataclass(slots=True, eq=False)
class PackedRow:
    """The segments of one packed row, and what was captured while it ran.

    `bounds`: segment i is tokens [bounds[i], bounds[i+1]). `wanted`: what is to be read of which segments' attention
    in the last layer. `found[i]`: those readings, float32. `num_calls`: how many layers came by.
    """

    bounds: list[int]
    num_layers: int
    wanted: Mapping[int, tuple[Row, frozenset[Reading]]] = field(default_factory=dict)
    found: dict[int, dict[Reading, Tensor]] = field(default_factory=dict)
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
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention within each segment: query [1, heads, n, d], key and value [1, kv_heads, n, d] give
    [1, n, heads, d].

    Raises CannotPack for a mask, a bias or a non-causal layer, which would be dropped silently otherwise.
    """
    row = _current.get()
    is_causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if row is None or attention_mask is not None or kwargs.get("position_bias") is not None or not causal:
        raise CannotPack(f"{type(module).__name__} wants a mask, a position bias or two-way attention")
    bias = Bias(
        scaling=kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[-1] ** -0.5,
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    row.num_calls += 1
    is_last = row.num_calls == row.num_layers
    output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    for index, (start, stop) in enumerate(zip(row.bounds, row.bounds[1:], strict=False)):
        q, k, v = (tensor[:, :, start:stop] for tensor in (query, key, value))
        output[:, start:stop] = _attend(q, k, v, bias).transpose(1, 2)
        if is_last and index in row.wanted:
            row.found[index] = read(q[0], k[0], bias, *row.wanted[index])
    return output, None


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    window_bites = bias.window is not None and q.shape[2] > bias.window
    if bias.softcap is None and bias.sinks is None and not window_bites:
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=bias.scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    return _attend_in_blocks(q, k, v, bias)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, bias: Bias) -> Tensor:
    """The same in float32 blocks of queries, for scores that SDPA cannot shape; never a [n, n] map."""
    groups = q.shape[1] // k.shape[1]
    k, v = (tensor.float().repeat_interleave(groups, dim=1) for tensor in (k, v))
    mixed = [(weights @ v[:, :, left:bottom]).to(q.dtype) for left, bottom, weights in blocks(q.float(), k, bias)]
    return torch.cat(mixed, dim=2)


AttentionInterface.register(IMPLEMENTATION, segments_attention)
