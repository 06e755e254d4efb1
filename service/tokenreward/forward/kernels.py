"""Attention kernels for packed groups: each range on itself, causally, and a group's responses on
their prompt; the two halves of a response's attention are merged by their logsumexp (Juravsky et
al. 2024, "Hydragen", 2402.05099).

It knows ranges and tensors; scores that no kernel shapes (soft-cap, sinks) are not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenreward.forward.packing import Group, Range

QKV = tuple[Tensor, Tensor, Tensor]  # queries [1, heads, n, d], keys and values [1, kv_heads, n, d]

# (qkv, groups, scale, out): writes what was attended, out [n, heads, d], to the places of the
# groups.
Attend = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Kernel:
    """`shares`: groups may have responses; without it, whole rows only. `windows`: `attend` also
    takes `window`, how many tokens each may see, itself included, or None."""

    attend: Attend
    shares: bool
    windows: bool = False


def merged(own: Tensor, own_lse: Tensor, prompt: Tensor, prompt_lse: Tensor) -> Tensor:
    """Softmax attention over two sets of keys, from that over each. Attended [..., d], logsumexps
    [...] in float32."""
    share = torch.sigmoid(prompt_lse - own_lse)[..., None]
    # Float32 by promotion within the operators: half-precision tensors are not written out as
    # float32 first.
    return torch.addcmul(prompt * share, own, 1 - share, out=torch.empty_like(own))


def attend_on_cpu(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """One fused call per range."""
    for group in groups:
        start, stop = group.prompt
        out[start:stop] = _flash(qkv, group.prompt, group.prompt, scale)[0]
        if not group.responses:
            continue
        queries = first, _ = group.responses[0][0], group.responses[-1][1]
        prompt, prompt_lse = _flash(qkv, queries, group.prompt, scale)
        for start, stop in group.responses:
            own, own_lse = _flash(qkv, (start, stop), (start, stop), scale)
            half = slice(start - first, stop - first)
            out[start:stop] = merged(own, own_lse, prompt[half], prompt_lse[half])


def _flash(qkv: QKV, queries: Range, keys: Range, scale: float) -> tuple[Tensor, Tensor]:
    """Attended [m, heads, d] and lse [m, heads] of a range of queries; causal on itself, all of it
    on another range."""
    q, k, v = (
        tensor[:, :, slice(*part)] for tensor, part in zip(qkv, (queries, keys, keys), strict=True)
    )
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, lse = flash(q, k, v, 0.0, queries == keys, scale=scale)
    return attended[0].transpose(0, 1), lse[0].transpose(0, 1)


def attend_alone(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """Whole rows only, through torch's own choice of kernel: wherever no kernel with a logsumexp is
    at hand."""
    for group in groups:
        start, stop = group.prompt
        q, k, v = (tensor[0, :, start:stop] for tensor in qkv)
        # Of torch's fused kernels the one for float32 on a GPU does not know grouped heads, and
        # without it there is a map [heads, n, n]. So each key head is a batch of its own, seen by
        # its queries' heads without being repeated.
        q = q.view(k.shape[0], q.shape[0] // k.shape[0], *q.shape[1:])
        k, v = (tensor[:, None].expand(-1, q.shape[1], -1, -1) for tensor in (k, v))
        attended = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale
        ).permute(2, 0, 1, 3)
        out[start:stop].view(attended.shape).copy_(attended)


def choose_kernel(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> Kernel:
    """The kernel for a device, a dtype and a head; None for heads of which queries and values
    differ in size."""
    if device.type == "cpu":
        return Kernel(attend_on_cpu, shares=True)
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim is not None:
        from tokenreward.forward.varlen import VarlenKernel, find_flash

        found = find_flash(device, dtype, head_dim)
        if found is not None:
            flash, windows = found
            return Kernel(VarlenKernel(flash), shares=True, windows=windows)
    return Kernel(attend_alone, shares=False)
