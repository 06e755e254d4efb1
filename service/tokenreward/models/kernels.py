"""Attention kernels for packed groups: each range on itself, causally, and a group's responses on their prompt; the two
halves of a response's attention are merged by their logsumexp (Juravsky et al. 2024, "Hydragen", 2402.05099).

It knows ranges and tensors; scores that a kernel cannot shape (soft-cap, sinks, a window) are not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tokenreward.models.packing import Group, Range

QKV = tuple[Tensor, Tensor, Tensor]  # queries [1, heads, n, d], keys and values [1, kv_heads, n, d]

# (qkv, groups, scale, out): writes what was attended, out [n, heads, d], to the places of the groups.
Kernel = Callable[[QKV, Sequence[Group], float, Tensor], None]


def merged(own: Tensor, own_lse: Tensor, prompt: Tensor, prompt_lse: Tensor) -> Tensor:
    """Softmax attention over two sets of keys, from that over each. Attended [..., d], logsumexps [...] in float32."""
    share = torch.sigmoid(prompt_lse - own_lse)[..., None]
    return torch.lerp(own.float(), prompt.float(), share).to(own.dtype)


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
    """Attended [m, heads, d] and lse [m, heads] of a range of queries; causal on itself, all of it on another range."""
    q, k, v = (tensor[:, :, slice(*part)] for tensor, part in zip(qkv, (queries, keys, keys), strict=True))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, lse = flash(q, k, v, 0.0, queries == keys, scale=scale)
    return attended[0].transpose(0, 1), lse[0].transpose(0, 1)


def attend_alone(qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
    """Whole rows only, through torch's own choice of kernel: wherever no kernel with a logsumexp is at hand."""
    for group in groups:
        start, stop = group.prompt
        q, k, v = (tensor[:, :, start:stop] for tensor in qkv)
        grouped = q.shape[1] != k.shape[1]
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        out[start:stop] = attended[0].transpose(0, 1)


class VarlenKernel:
    """Two calls for all groups, for CUDA; what they need on the device is made once per pass, so no layer waits for the
    host. `varlen`: torch.nn.attention.varlen.varlen_attn, or what stands for it."""

    def __init__(self, varlen: Callable[..., Any], aux: object) -> None:
        """`aux`: what asks `varlen` for the logsumexp, too."""
        self._varlen = varlen
        self._aux = aux
        self._plans: dict[tuple[Group, ...], _Plan] = {}

    def __call__(self, qkv: QKV, groups: Sequence[Group], scale: float, out: Tensor) -> None:
        key = tuple(groups)
        plan = self._plans.get(key)
        if plan is None:
            self._plans.clear()  # of the pass before
            plan = self._plans[key] = _Plan(groups, out.device)
        tokens = [tensor[0].transpose(0, 1) for tensor in qkv]
        out[plan.ranges.tokens], own_lse = self._attend(tokens, plan.ranges, plan.ranges, scale)
        if plan.pair is None:
            return
        prompt, prompt_lse = self._attend(tokens, *plan.pair, scale)
        places = plan.pair[0].tokens
        out[places] = merged(out[places], own_lse[plan.responses], prompt, prompt_lse)

    def _attend(self, tokens: list[Tensor], queries: _Cut, keys: _Cut, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = tokens[0][queries.tokens], tokens[1][keys.tokens], tokens[2][keys.tokens]
        attended, lse = self._varlen(
            q,
            k,
            v,
            queries.bounds,
            keys.bounds,
            queries.longest,
            keys.longest,
            return_aux=self._aux,
            scale=scale,
            window_size=(-1, 0) if queries is keys else (-1, -1),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        # Documented as [tokens, heads]; flash kernels have it the other way round.
        return attended, lse if lse.shape == attended.shape[:2] else lse.transpose(0, 1)


class _Cut:
    """Ranges of the packed sequence as a varlen kernel wants them: their tokens, where each begins, the longest."""

    def __init__(self, ranges: Sequence[Range], device: torch.device) -> None:
        lengths = [stop - start for start, stop in ranges]
        self.longest = max(lengths)
        self.bounds = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
        ends = [start for start, _ in ranges[1:]]
        if ends == [stop for _, stop in ranges[:-1]]:  # one after the other: a view, not a copy
            self.tokens: slice | Tensor = slice(ranges[0][0], ranges[-1][1])
        else:
            self.tokens = torch.cat([torch.arange(start, stop, device=device) for start, stop in ranges])


class _Plan:
    """Both calls of a pass. `responses`: where the shared responses' tokens are among those of `ranges`."""

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        ranges = [part for group in groups for part in (group.prompt, *group.responses)]
        shared = [group for group in groups if group.responses]
        self.ranges = _Cut(ranges, device)
        self.pair: tuple[_Cut, _Cut] | None = None
        if shared:
            queries = [(group.responses[0][0], group.responses[-1][1]) for group in shared]
            self.pair = _Cut(queries, device), _Cut([group.prompt for group in shared], device)
            tokens = torch.arange(ranges[-1][1], device=device)
            place = torch.zeros_like(tokens)
            place[self.ranges.tokens] = torch.arange(len(tokens[self.ranges.tokens]), device=device)
            self.responses = place[tokens[self.pair[0].tokens]]


def choose_kernel(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, bool]:
    """The kernel for a device and a dtype, and whether it can share prompts."""
    if device.type == "cpu":
        return attend_on_cpu, True
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import AuxRequest, varlen_attn

        return VarlenKernel(varlen_attn, AuxRequest(lse=True)), True
    return attend_alone, False
