"""The varlen kernel's calls, with a stand-in that does what torch documents, against float64
attention written out.

The kernel itself needs a GPU; `tests/gpu` runs it there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tokenreward.forward import flash as flash_module
from tokenreward.forward import kernels
from tokenreward.forward.flash import Flash, find_flash, try_flash
from tokenreward.forward.kernels import VarlenKernel
from tokenreward.forward.packing import Group

CPU = torch.device("cpu")
GROUPS = (
    ((0, 9),),
    ((9, 30), (30, 31), (31, 44), (44, 60)),
    ((60, 61),),
    ((61, 80), (80, 90), (90, 95)),
)
APART = (((0, 9),), ((9, 60),), ((60, 61),), ((61, 95),))
SCALE = 0.3


def qkv(
    *, num_tokens: int = 95, heads: int = 4, kv_heads: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda num: torch.randn(1, num, num_tokens, 8, generator=generator) * 2  # noqa: E731
    return draw(heads), draw(kv_heads), draw(kv_heads)


def truth(
    q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], window: int | None = None
) -> Tensor:
    """[n, heads, d]: row by row, a token sees the last `window` tokens of its own row up to
    itself."""
    out = torch.full((q.shape[2], q.shape[1], q.shape[3]), math.nan, dtype=torch.float64)
    q, k, v = (tensor[0].double() for tensor in (q, k, v))
    k, v = (tensor.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for tensor in (k, v))
    for group in groups:
        for own in group:
            before = [] if own == group[0] else list(range(*group[0]))
            for place in range(*own):
                seen = (before + list(range(own[0], place + 1)))[-(window or 10**6) :]
                scores = torch.einsum("hd,hnd->hn", q[:, place], k[:, seen]) * SCALE
                out[place] = torch.einsum("hn,hnd->hd", scores.softmax(dim=-1), v[:, seen])
    return out


def stand_in(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: tuple[Tensor, Tensor],
    window: tuple[int, int],
    scale: float,
) -> Any:
    """What flash attention documents, sequence by sequence: queries are the last of their keys,
    `window` counts keys to both sides, -1 is all. The lse [heads, tokens], as its kernels give
    it."""
    assert bounds[0].dtype == bounds[1].dtype == torch.int32
    assert bounds[0][-1] == len(q)
    assert bounds[1][-1] == len(k) == len(v)
    outs, lses = [], []
    for (a, b), (c, d) in zip(*map(pairwise, bounds), strict=True):
        keys, values = (
            tensor[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(0, 1)
            for tensor in (k, v)
        )
        scores = (q[a:b].transpose(0, 1).float() @ keys.float().transpose(-1, -2)) * scale
        ahead = torch.arange(d - c) - torch.arange(b - a)[:, None] - ((d - c) - (b - a))
        left, right = window
        hidden = (ahead > right) & torch.tensor(right >= 0) | (ahead < -left) & torch.tensor(
            left >= 0
        )
        scores = scores.masked_fill(hidden, -torch.inf)
        outs.append((scores.softmax(dim=-1) @ values.float()).transpose(0, 1))
        lses.append(scores.logsumexp(dim=-1))
    return torch.cat(outs).to(q.dtype), torch.cat(lses, dim=1)


def today(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    num_splits: int | None = None,
) -> Any:
    """As torch has it since 2.12."""
    assert (max_q, max_k) == (max(2, int(cu_q.diff().max())), int(cu_k.diff().max()))
    assert enable_gqa == (q.shape[1] != k.shape[1])
    assert num_splits == 1
    assert return_aux == "lse"
    assert scale is not None
    return stand_in(q, k, v, (cu_q, cu_k), window_size, scale)


def of_2_11(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    """Grouped heads without being told, and no word on splits."""
    return today(
        q, k, v, cu_q, cu_k, max_q, max_k,
        return_aux=return_aux, scale=scale, window_size=window_size,
        enable_gqa=q.shape[1] != k.shape[1], num_splits=1,
    )  # fmt: skip


def as_documented(*arguments: Any, **how: Any) -> Any:
    """The lse [tokens, heads], as the documentation has it."""
    attended, lse = today(*arguments, **how)
    return attended, lse.transpose(0, 1)


as_documented.__signature__ = inspect.signature(today)  # type: ignore[attr-defined]


def refuses_whole_rows(*arguments: Any, **how: Any) -> Any:
    """Knows the argument and cannot do it."""
    if how.get("num_splits") is not None:
        raise RuntimeError("num_splits is not supported")
    return today(*arguments, **how, num_splits=1)


refuses_whole_rows.__signature__ = inspect.signature(today)  # type: ignore[attr-defined]
VERSIONS = (today, of_2_11, as_documented, refuses_whole_rows)


def flash(of: Callable[..., Any] = today) -> Flash:
    found = try_flash(of, "lse", CPU, torch.bfloat16, 16)
    assert found is not None
    assert found[1]
    return found[0]


def attend(
    kernel: VarlenKernel, tensors: Any, groups: tuple[Group, ...], window: int | None = None
) -> Tensor:
    q = tensors[0]
    out = torch.full((q.shape[2], q.shape[1], q.shape[3]), math.nan)
    kernel(tensors, groups, SCALE, out, window=window)
    return out


@pytest.mark.parametrize(
    "groups", [GROUPS, APART, GROUPS[1:2]], ids=["some shared", "apart", "all shared"]
)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_groups_attend_as_one_softmax(
    version: Any, kv_heads: int, groups: tuple[Group, ...]
) -> None:
    tensors = qkv(kv_heads=kv_heads)
    found, expected = attend(VarlenKernel(flash(version)), tensors, groups), truth(*tensors, groups)
    assert torch.equal(found.isnan(), expected.isnan())
    assert (found - expected).nan_to_num().abs().max() < 1e-5


@pytest.mark.parametrize("groups", [GROUPS, APART], ids=["some shared", "apart"])
@pytest.mark.parametrize("window", [1, 2, 5, 13, 21, 33, 60])
def test_a_window_reaches_from_a_response_into_its_prompt(
    window: int, groups: tuple[Group, ...]
) -> None:
    tensors = qkv()
    found, expected = (
        attend(VarlenKernel(flash()), tensors, groups, window),
        truth(*tensors, groups, window),
    )
    assert (found - expected).abs().max() < 1e-5


def test_keys_laid_out_for_a_window_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, seen = qkv(), []

    def watched(q: Tensor, k: Tensor, *more: Any, **how: Any) -> Any:
        seen.append(len(k))
        return today(q, k, *more, **how)

    watched.__signature__ = inspect.signature(today)  # type: ignore[attr-defined]
    kernel = VarlenKernel(flash(watched))
    seen.clear()
    bytes_of_40_keys = 40 * 2 * 2 * 8 * 4  # of 2 heads of 8 float32
    monkeypatch.setattr(kernels, "GATHERED_BYTES", bytes_of_40_keys)
    assert (attend(kernel, tensors, GROUPS, 14) - truth(*tensors, GROUPS, 14)).abs().max() < 1e-5
    assert len(seen) > 3
    assert max(seen) <= 40


def test_a_kernel_plans_once_for_a_pass_and_anew_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, made = VarlenKernel(flash()), []
    to_ragged = kernels.to_ragged
    monkeypatch.setattr(kernels, "to_ragged", lambda *parts: made.append(1) or to_ragged(*parts))
    for groups in (GROUPS, GROUPS[:2], (((0, 95),),), GROUPS):
        made.clear()
        tensors = qkv()
        for window in (None, 14, None, 14, 500):  # as models with layers of two kinds ask
            found, expected = (
                attend(kernel, tensors, groups, window),
                truth(*tensors, groups, window),
            )
            assert (found - expected).nan_to_num().abs().max() < 1e-5
        assert len(made) == 2


def test_rows_of_one_token_are_not_asked_for_as_decoding() -> None:
    groups = (((0, 20), *((place, place + 1) for place in range(20, 95))),)
    tensors = qkv()
    assert (
        attend(VarlenKernel(flash()), tensors, groups) - truth(*tensors, groups)
    ).abs().max() < 1e-5


def test_as_many_tokens_as_heads_do_not_turn_the_logsumexp_round() -> None:
    groups = (((0, 20), (20, 22), (22, 24)),)
    tensors = qkv(num_tokens=24, heads=4)
    for version in (today, as_documented):
        found = attend(VarlenKernel(flash(version)), tensors, groups)
        assert (found - truth(*tensors, groups)).abs().max() < 1e-5


def of_2_10(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int,
            is_causal: bool = False, return_aux: Any = None) -> Any:  # fmt: skip
    raise AssertionError("must not be called")


def wrong(change: Callable[..., Any]) -> Callable[..., Any]:
    def version(*arguments: Any, **how: Any) -> Any:
        return change(today, *arguments, **how)

    version.__signature__ = inspect.signature(today)  # type: ignore[attr-defined]
    return version


@wrong
def unmasked(of: Any, *arguments: Any, **how: Any) -> Any:
    return of(*arguments, **how | {"window_size": (-1, -1)})


@wrong
def unscaled(of: Any, *arguments: Any, **how: Any) -> Any:
    return of(*arguments, **how | {"scale": 1.0})


@wrong
def no_normaliser(of: Any, *arguments: Any, **how: Any) -> Any:
    attended, lse = of(*arguments, **how)
    return attended, lse * 0


@wrong
def padded_normaliser(of: Any, *arguments: Any, **how: Any) -> Any:
    attended, lse = of(*arguments, **how)
    return attended, lse[None]


@wrong
def nan(of: Any, *arguments: Any, **how: Any) -> Any:
    attended, lse = of(*arguments, **how)
    return attended * math.nan, lse


@wrong
def absent(of: Any, *arguments: Any, **how: Any) -> Any:
    raise RuntimeError("built without flash attention")


@pytest.mark.parametrize(
    "version", [of_2_10, unmasked, unscaled, no_normaliser, padded_normaliser, nan, absent]
)
def test_a_kernel_that_gives_something_else_is_not_taken(version: Any) -> None:
    assert try_flash(version, "lse", CPU, torch.bfloat16, 16) is None


@wrong
def window_off_by_one(of: Any, *arguments: Any, **how: Any) -> Any:
    left, right = how["window_size"]
    return of(*arguments, **how | {"window_size": (left + 1 if left > 0 else left, right)})


def test_a_kernel_whose_windows_are_others_is_taken_without_them() -> None:
    found = try_flash(window_off_by_one, "lse", CPU, torch.bfloat16, 16)
    assert found is not None
    assert not found[1]


def refuses_windows(*arguments: Any, **how: Any) -> Any:
    if how["window_size"][0] > 0:
        raise RuntimeError("no windows in this build")
    return as_documented(*arguments, **how)


refuses_windows.__signature__ = inspect.signature(today)  # type: ignore[attr-defined]


def test_a_kernel_that_raises_for_windows_is_taken_without_them() -> None:
    found = try_flash(refuses_windows, "lse", CPU, torch.bfloat16, 16)
    assert found is not None
    flash, windows = found
    assert not windows
    tensors = qkv()
    assert (
        attend(VarlenKernel(flash), tensors, GROUPS) - truth(*tensors, GROUPS)
    ).abs().max() < 1e-5


@pytest.mark.parametrize(("head_dim", "capability"), [(264, (9, 0)), (60, (9, 0)), (64, (7, 5))])
def test_heads_and_devices_that_flash_attention_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, head_dim: int, capability: tuple[int, int]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(flash_module, "try_flash", lambda *arguments: pytest.fail("was tried"))
    assert find_flash(torch.device("cuda"), torch.bfloat16, head_dim) is None


def test_torchs_own_kernel_is_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(flash_module, "try_flash", lambda *arguments: asked.append(arguments))
    assert find_flash(torch.device("cuda"), torch.bfloat16, 128) is None
    ((of, aux, *more),) = asked
    assert of is torch.nn.attention.varlen.varlen_attn
    assert aux.lse
    assert more == [torch.device("cuda"), torch.bfloat16, 128]
