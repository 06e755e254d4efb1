"""Attention kernels for packed groups, where scale and causality are all that shapes the scores.

A kernel attends each range of a group on itself, causally, and the responses of a group on their
prompt. The two halves of a response's attention are merged by their logsumexps (Juravsky et al.
2024, "Hydragen", 2402.05099). This module knows ranges and tensors. Scores that a soft-cap or sinks
shape go another way (`attention_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tokenreward.forward.packing import Group, Range

QKV = tuple[Tensor, Tensor, Tensor]  # queries [1, heads, n, d], keys and values [1, kv_heads, n, d]

# A kernel (qkv, groups, scale, out) writes the attended values, out [n, heads, d], at the places of
# the groups, and nowhere else.
Attend = Callable[..., None]


def merge(own: Tensor, own_lse: Tensor, prompt: Tensor, prompt_lse: Tensor) -> Tensor:
    """Softmax attention over two sets of keys, from the attention over each set alone.

    With s = sigmoid(prompt_lse - own_lse), the share of the prompt's keys in the joint softmax:
    s * prompt + (1 - s) * own.

    Args:
        own: Attended over the first set, [..., d].
        own_lse: logsumexp of its scores, [...], float32.
        prompt: Attended over the second set, [..., d].
        prompt_lse: logsumexp of its scores, [...], float32.
    """
    share = torch.sigmoid(prompt_lse - own_lse)[..., None]
    # The operators compute in float32 by promotion, so half-precision tensors are not written out
    # as float32 first.
    return torch.addcmul(prompt * share, own, 1 - share, out=torch.empty_like(own))


def attend_on_cpu(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """A kernel with one fused call per range."""
    for prompt, *responses in groups:
        out[slice(*prompt)] = _flash(qkv, prompt, prompt, scale)[0]
        if not responses:
            continue
        # All responses of a group meet its prompt in one call: they follow one another.
        first, last = responses[0][0], responses[-1][1]
        on_prompt, on_prompt_lse = _flash(qkv, (first, last), prompt, scale)
        for start, stop in responses:
            own, own_lse = _flash(qkv, (start, stop), (start, stop), scale)
            part = slice(start - first, stop - first)
            out[start:stop] = merge(own, own_lse, on_prompt[part], on_prompt_lse[part])


def _flash(qkv: QKV, queries: Range, keys: Range, scale: float) -> tuple[Tensor, Tensor]:
    """Attended [m, heads, d] and logsumexps [m, heads] of a range of queries.

    A range is causal on itself; on another range, it attends to all of it.
    """
    ranges = (queries, keys, keys)
    q, k, v = (tensor[:, :, slice(*part)] for tensor, part in zip(qkv, ranges, strict=True))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, lse = flash(q, k, v, 0.0, queries == keys, scale=scale)
    return attended[0].transpose(0, 1), lse[0].transpose(0, 1)


def attend_alone(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """A kernel for whole rows only, through torch's own choice.

    It serves where no kernel gives a logsumexp, by which responses could be merged with a prompt.
    """
    for ((start, stop),) in groups:
        q, k, v = (tensor[0, :, start:stop] for tensor in qkv)
        # Of torch's fused kernels, the one for float32 on a GPU does not know grouped heads, and
        # without a fused kernel there is a map [heads, n, n]. So each key head is a batch of its
        # own, which the heads of its queries see without a copy of it.
        q = q.view(k.shape[0], q.shape[0] // k.shape[0], *q.shape[1:])
        k, v = (tensor[:, None].expand(-1, q.shape[1], -1, -1) for tensor in (k, v))
        sdpa = functional.scaled_dot_product_attention
        attended = sdpa(q, k, v, is_causal=True, scale=scale).permute(2, 0, 1, 3)
        out[start:stop].view(attended.shape).copy_(attended)
