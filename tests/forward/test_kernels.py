"""Attention kernels against float64 attention with the mask written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fakes import tiny
from tokenreward.forward.kernels import attend_alone, attend_on_cpu, merge
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.packing import Group

GROUPS = (
    ((0, 9),),
    ((9, 30), (30, 31), (31, 44), (44, 60)),
    ((60, 61),),
    ((61, 80), (80, 90), (90, 95)),
)
SCALE = 0.3


def qkv(num_tokens: int, *, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda num: torch.randn(1, num, num_tokens, 8, generator=generator) * 2  # noqa: E731
    return draw(heads), draw(kv_heads), draw(kv_heads)


def truth(q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...]) -> Tensor:
    """[n, heads, d]: one softmax over what a token may see, its own range up to itself and the
    prompt of its group."""
    n = q.shape[2]
    allowed = torch.zeros(n, n, dtype=torch.bool)
    for group in groups:
        for start, stop in group:
            allowed[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
        for start, stop in group[1:]:
            allowed[start:stop, slice(*group[0])] = True
    q, k, v = (tensor[0].double() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for tensor in (k, v))
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(~allowed, -torch.inf)
    weights = torch.nan_to_num(scores.softmax(dim=-1))
    return (weights @ v).transpose(0, 1)


def attend(
    kernel: Any, tensors: tuple[Tensor, Tensor, Tensor], groups: tuple[Group, ...]
) -> Tensor:
    q = tensors[0]
    out = torch.full((q.shape[2], q.shape[1], q.shape[3]), math.nan)
    kernel(tensors, groups, SCALE, out)
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_shared_prompts_and_whole_rows_attend_as_one_softmax(kv_heads: int) -> None:
    tensors = qkv(95, kv_heads=kv_heads)
    assert (attend(attend_on_cpu, tensors, GROUPS) - truth(*tensors, GROUPS)).abs().max() < 1e-5


def test_a_kernel_leaves_the_places_of_other_groups_alone() -> None:
    tensors, some = qkv(95), (GROUPS[1], GROUPS[3])
    out = attend(attend_on_cpu, tensors, some)
    assert out[:9].isnan().all()
    assert out[60].isnan().all()
    assert (out[9:60] - truth(*tensors, some)[9:60]).abs().max() < 1e-5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_alone_attend_causally(kv_heads: int) -> None:
    groups = (((0, 9),), ((9, 40),))
    tensors = qkv(40, kv_heads=kv_heads)
    assert (attend(attend_alone, tensors, groups) - truth(*tensors, groups)).abs().max() < 1e-5


def test_rows_alone_attend_to_values_of_another_size() -> None:
    groups = (((0, 9),), ((9, 40),))
    q, k, v = qkv(40)
    out = torch.full((40, 4, 6), math.nan)
    attend_alone((q, k, v[..., :6]), groups, SCALE, out)
    assert (out - truth(q, k, v, groups)[..., :6]).abs().max() < 1e-5


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rows_alone_ask_what_every_fused_kernel_can_and_repeat_no_keys(
    monkeypatch: pytest.MonkeyPatch, kv_heads: int
) -> None:
    tensors, asked = qkv(40, kv_heads=kv_heads), []
    sdpa = functional.scaled_dot_product_attention

    def seen(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        asked.append(how)
        assert q.shape == k.shape == v.shape  # heads told apart by number are for some kernels only
        assert [part.data_ptr() for part in (q, k, v)] == [part.data_ptr() for part in tensors]
        assert all(part.stride(-1) == 1 for part in (q, k, v))
        return sdpa(q, k, v, **how)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", seen)
    attend(attend_alone, tensors, (((0, 40),),))
    assert asked == [{"is_causal": True, "scale": SCALE}]


def test_merging_is_exact_where_one_side_has_all_the_weight() -> None:
    own, prompt = torch.ones(1, 2, 3), torch.full((1, 2, 3), 5.0)
    far = torch.tensor([[200.0, -200.0]])
    assert merge(own, torch.zeros(1, 2), prompt, far)[0, :, 0].tolist() == [5.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_rounds_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    own, prompt = (torch.randn(50, 4, 8, generator=generator).to(dtype) for _ in range(2))
    own_lse, prompt_lse = (torch.randn(50, 4, generator=generator) for _ in range(2))
    share = (prompt_lse.double() - own_lse.double()).sigmoid()[..., None]
    exact = own.double() * (1 - share) + prompt.double() * share
    found = merge(own, own_lse, prompt, prompt_lse)
    assert found.dtype == dtype
    assert (
        (found.double() - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-6
    ).all()


def test_a_cpu_kernel_shares_prompts_and_leaves_windows_to_blocks() -> None:
    layout = PackedLayout(tiny.checkpoint(tiny.model("llama").to(torch.bfloat16)))
    assert (layout.kernel, layout.shares) == (attend_on_cpu, True)
    assert "windows" not in layout.note
