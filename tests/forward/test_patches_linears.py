"""Float32 linears through oneDNN: as exact as torch's own, only where they are faster, and never
for good."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fakes import oracle, tiny
from tokenreward.contract import Needs
from tokenreward.forward import patches
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.probe import choose_layout

NEEDS = Needs(frozenset({1.0}))


def swapped(model: nn.Module) -> int:
    return sum(
        "forward" in vars(module) for module in model.modules() if isinstance(module, nn.Linear)
    )


@pytest.mark.parametrize("architecture", ["llama", "phi", "gemma2"])
def test_a_model_through_onednn_is_as_exact_as_its_own_forward(architecture: str) -> None:
    model = tiny.model(architecture)
    exact, layout = oracle.double(model), PackedLayout(tiny.checkpoint(model))
    own = layout.run(tiny.work(NEEDS))
    layout.compute_linears_through(patches.onednn_linear)
    assert swapped(model) > 10
    for (row, _), fast, naive in zip(
        tiny.work(NEEDS), layout.run(tiny.work(NEEDS)), own, strict=True
    ):
        rows = oracle.logits(exact, row.ids)[row.start - 1 :]
        truth = oracle.logsumexp(rows)
        bound = 1e-5 * max(1.0, float(np.abs(rows).max()))
        assert np.abs(fast.lse[1.0] - truth).max() <= np.abs(naive.lse[1.0] - truth).max() + bound


def test_layers_get_their_own_forward_back() -> None:
    model = tiny.model("llama")
    layout = PackedLayout(tiny.checkpoint(model))
    own = layout.run(tiny.work(NEEDS))
    layout.compute_linears_through(patches.onednn_linear)
    layout.compute_linears_through(None)
    assert swapped(model) == 0
    for before, after in zip(own, layout.run(tiny.work(NEEDS)), strict=True):
        np.testing.assert_array_equal(before.lse[1.0], after.lse[1.0])


def test_the_truth_of_a_patched_model_owes_its_patches_nothing() -> None:
    model, row = tiny.model("llama"), next(iter(tiny.work(NEEDS))).row
    truth = oracle.logits(oracle.double(model), row.ids)
    patches.patch_linears(model, lambda x, weight, bias: torch.zeros(()))
    np.testing.assert_array_equal(oracle.logits(oracle.double(model), row.ids), truth)


def test_bf16_layers_and_subclasses_are_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    patches.patch_linears(model, patches.onednn_linear)
    assert swapped(model) == 0
    assert patches.onednn_gain(model) is None


def test_a_gain_below_the_threshold_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(64, 64)
    monkeypatch.setattr(patches, "WORTH", 0.0)
    assert (patches.onednn_gain(model) or math.nan) > 0
    monkeypatch.setattr(patches, "WORTH", 1e9)
    assert patches.onednn_gain(model) is None


@pytest.mark.parametrize("fault", ["another result", "an exception"])
def test_an_operator_that_is_absent_or_wrong_is_not_used(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if fault == "an exception":
            raise AttributeError("no such operator")
        return patches.torch_linear(x, weight, bias) + 1e-3

    assert patches.onednn_agrees(nn.Linear(64, 64))
    assert not patches.onednn_agrees(nn.Linear(64, 64).half())
    monkeypatch.setattr(patches, "onednn_linear", broken)
    monkeypatch.setattr(patches, "WORTH", 0.0)
    assert not patches.onednn_agrees(nn.Linear(64, 64))
    assert patches.onednn_gain(nn.Linear(64, 64)) is None


def test_the_probe_gives_up_onednn_if_the_whole_model_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = lambda x, weight, bias: patches.torch_linear(x, weight, bias) * (1 + 1e-4)  # noqa: E731
    monkeypatch.setattr("tokenreward.forward.probe.onednn_gain", lambda model: 2.0)
    monkeypatch.setattr("tokenreward.forward.probe.onednn_linear", off)
    model, lines = tiny.model("llama"), []
    layout = choose_layout(tiny.checkpoint(model), NEEDS, say=lines.append)
    assert layout.name == "packed"
    assert swapped(model) == 0
    assert any("stay torch's own" in line for line in lines)


class SeenRows(TorchDispatchMode):
    """Notes how many rows oneDNN's operator is given, and how often rows are added."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: set[int] = set()
        self.num_added = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_linear_pointwise" in str(func):
            self.rows.add(args[0].shape[:-1].numel())
        self.num_added += "aten.pad" in str(func)
        return func(*args, **(kwargs or {}))


def test_onednn_compiles_for_few_numbers_of_rows() -> None:
    weight, bias = torch.randn(3, 4), torch.randn(3)
    with torch.inference_mode(), SeenRows() as seen:
        for num_rows in range(1, 4097):
            patches.onednn_linear(torch.ones(num_rows, 4), weight, bias)
    assert len(seen.rows) == 68
    assert seen.rows == {patches.padded_rows(number) for number in range(1, 4097)}
    assert all(0 <= patches.padded_rows(n) - n < max(8, n / 3) for n in range(1, 4097))


def test_a_packed_pass_has_the_right_number_of_rows_for_every_layer() -> None:
    layout = PackedLayout(tiny.checkpoint(tiny.model("llama")))
    layout.compute_linears_through(patches.onednn_linear)
    work = tiny.work(NEEDS)[:2]
    assert patches.padded_rows(sum(len(row.ids) for row, _ in work)) == 48  # of 45
    with SeenRows() as seen:
        layout.run(work)
    assert 48 in seen.rows
    assert seen.num_added == 1  # for the language head, which has the tokens of responses


@pytest.mark.parametrize("shape", [(0, 16), (16,), (7, 16), (1, 130, 16), (3, 5, 16), (600, 16)])
def test_rows_that_are_added_are_left_out(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(9, 16), torch.randn(9)
    for b in (bias, None):
        ours, theirs = (f(x, weight, b) for f in (patches.onednn_linear, patches.torch_linear))
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
