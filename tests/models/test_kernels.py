"""Attention kernels against float64 attention with the mask written out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenreward.models.kernels import VarlenKernel, attend_alone, attend_on_cpu, merged
from tokenreward.models.packing import Group

GROUPS = (
    Group((0, 9)),
    Group((9, 30), ((30, 31), (31, 44), (44, 60))),
    Group((60, 61)),
    Group((61, 80), ((80, 90), (90, 95))),
)
SCALE = 0.3


def qkv(num_tokens: int, *, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda num: torch.randn(1, num, num_tokens, 8, generator=generator) * 2  # noqa: E731
    return draw(heads), draw(kv_heads), draw(kv_heads)


def truth(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...]) -> Tensor:
    """[n, heads, d]: one softmax over what a token may see, its own range up to itself and the prompt of its group."""
    n = q.shape[2]
    allowed = torch.zeros(n, n, dtype=torch.bool)
    for group in groups:
        for start, stop in (group.prompt, *group.responses):
            allowed[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
        for start, stop in group.responses:
            allowed[start:stop, slice(*group.prompt)] = True
    q, k, v = (tensor[0].double() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for tensor in (k, v))
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~allowed, -torch.inf)
    weights = torch.nan_to_num(scores.softmax(dim=-1))
    return (weights @ v).transpose(0, 1)


def naive_varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, *longest: int, **how: Any) -> Any:
    """What `varlen_attn` documents, sequence by sequence; its lse [tokens, heads]."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert longest == (int(cu_q.diff().max()), int(cu_k.diff().max()))
    assert how["enable_gqa"] == (q.shape[1] != k.shape[1])
    outs, lses = [], []
    for (a, b), (c, d) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
        repeat = q.shape[1] // k.shape[1]
        keys, values = (tensor[c:d].repeat_interleave(repeat, dim=1).transpose(0, 1) for tensor in (k, v))
        scores = q[a:b].transpose(0, 1) @ keys.transpose(-1, -2) * how["scale"]
        if how["window_size"] == (-1, 0):
            scores = scores.masked_fill(torch.ones(b - a, d - c).triu(1).bool(), -torch.inf)
        outs.append((scores.softmax(dim=-1) @ values).transpose(0, 1))
        lses.append(scores.logsumexp(dim=-1).transpose(0, 1))
    return torch.cat(outs), torch.cat(lses)


def heads_first(*arguments: Any, **how: Any) -> Any:
    """The same with the lse that flash kernels give, [heads, tokens]."""
    attended, lse = naive_varlen(*arguments, **how)
    return attended, lse.transpose(0, 1)


def attend(kernel: Any, tensors: tuple[Tensor, Tensor, Tensor], groups: tuple[Group, ...]) -> Tensor:
    q = tensors[0]
    out = torch.full((q.shape[2], q.shape[1], q.shape[3]), math.nan)
    kernel(tensors, groups, SCALE, out)
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "kernel", [attend_on_cpu, VarlenKernel(naive_varlen, None), VarlenKernel(heads_first, None)], ids=str
)
def test_shared_prompts_and_whole_rows_attend_as_one_softmax(kernel: Any, kv_heads: int) -> None:
    tensors = qkv(95, kv_heads=kv_heads)
    assert (attend(kernel, tensors, GROUPS) - truth(*tensors, GROUPS)).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", [attend_on_cpu, VarlenKernel(naive_varlen, None)], ids=str)
def test_a_kernel_leaves_the_places_of_other_groups_alone(kernel: Any) -> None:
    tensors, some = qkv(95), (GROUPS[1], GROUPS[3])
    out = attend(kernel, tensors, some)
    assert out[:9].isnan().all()
    assert out[60].isnan().all()
    assert (out[9:60] - truth(*tensors, some)[9:60]).abs().max() < 1e-5


def test_a_varlen_kernel_plans_anew_for_another_pass() -> None:
    kernel = VarlenKernel(naive_varlen, None)
    for groups in (GROUPS, GROUPS[:2], (Group((0, 95)),), GROUPS):
        tensors = qkv(groups[-1].responses[-1][1] if groups[-1].responses else groups[-1].prompt[1])
        assert (attend(kernel, tensors, groups) - truth(*tensors, groups)).abs().max() < 1e-5


def test_rows_alone_attend_causally() -> None:
    groups = (Group((0, 9)), Group((9, 40)))
    tensors = qkv(40)
    assert (attend(attend_alone, tensors, groups) - truth(*tensors, groups)).abs().max() < 1e-5


def test_merging_is_exact_where_one_side_has_all_the_weight() -> None:
    own, prompt = torch.ones(1, 2, 3), torch.full((1, 2, 3), 5.0)
    far = torch.tensor([[200.0, -200.0]])
    assert merged(own, torch.zeros(1, 2), prompt, far)[0, :, 0].tolist() == [5.0, 1.0]
