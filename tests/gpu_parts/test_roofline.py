"""The bound counts what a model really multiplies and moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gpu.clock import Cpu
from gpu.roofline import Bound, Rates, elementwise_bytes, flops
from gpu.shapes import LLAMA_8B, QWEN3_06B, Shape, build

LENGTH = 12
SHAPES = (LLAMA_8B.tiny(), replace(QWEN3_06B.tiny(), layers=3, heads=6, kv_heads=3, mlp=56))
RATES = Rates(790e12, 4.3e12)


def run(shape: Shape, mode: Any) -> None:
    """One sequence through transformers' own eager forward, all logits."""
    model = build(shape, "causal_lm", torch.device("cpu"))
    model.set_attn_implementation("eager")
    with torch.inference_mode(), mode:
        model(input_ids=torch.arange(3, 3 + LENGTH)[None], use_cache=False)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_flops_are_those_that_torch_counts_with_attention_halved(shape: Shape) -> None:
    counter = FlopCounterMode(display=False)
    run(shape, counter)
    counted = {str(op): number for op, number in counter.get_flop_counts()["Global"].items()}
    # All of the map is multiplied there; a causal kernel needs its lower triangle, diagonal
    # included.
    expected = counted["aten.mm"] + counted["aten.bmm"] * (LENGTH + 1) / (2 * LENGTH)
    assert flops(shape, [LENGTH], LENGTH) == pytest.approx(expected, rel=1e-12)


def test_flops_of_sequences_add_up_and_the_head_counts_scored_rows() -> None:
    shape = SHAPES[0]
    both = flops(shape, [5, 9], 0)
    assert both == pytest.approx(flops(shape, [5], 0) + flops(shape, [9], 0))
    assert flops(shape, [5, 9], 7) - both == 2 * 7 * shape.hidden * shape.vocab


class Moved(TorchDispatchMode):
    """Bytes read and written by the operators that compute between a layer's matrix products."""

    OPERATORS = ("_to_copy", "pow", "mean", "rsqrt", "mul", "add", "neg", "cat", "silu")

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in self.OPERATORS:
            given = args[0] if name == "cat" else args
            tensors = [tensor for tensor in (*given, out) if isinstance(tensor, torch.Tensor)]
            self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_bytes_are_about_those_that_transformers_operators_move(shape: Shape) -> None:
    moved = Moved()
    run(shape, moved)
    assert elementwise_bytes(shape, LENGTH) == pytest.approx(sum(moved.bytes.values()), rel=0.15)


def test_the_bounds_of_real_shapes_are_those_worked_out_by_hand() -> None:
    # Llama 8B: 6.979e9 weights in layers, a head of 128256 x 4096, attention 4 x 4096 x 32 x 1024.5
    # a token.
    per_token = 2 * 6.979e9 + 2 * 128_256 * 4096 + 4 * 4096 * 32 * 1024.5
    bound = Bound.of(LLAMA_8B, [2048] * 8, 16_384, RATES)
    assert 16_384 / bound.ideal_s == pytest.approx(790e12 / per_token, rel=1e-3)
    assert 16_384 / bound.ideal_s == pytest.approx(50_800, rel=0.01)
    assert bound.elementwise_s > bound.ideal_s
    small = Bound.of(QWEN3_06B, [2048] * 8, 16_384, RATES)
    assert 16_384 / small.ideal_s == pytest.approx(554_000, rel=0.01)
    assert 16_384 / small.elementwise_s == pytest.approx(271_000, rel=0.01)


def test_a_real_shape_has_as_many_weights_as_its_checkpoint() -> None:
    for shape, num_billions in ((LLAMA_8B, 8.03), (QWEN3_06B, 0.596)):
        model = build(shape, "causal_lm", torch.device("meta"))
        assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(
            num_billions, rel=2e-3
        )
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_rates_are_work_over_time() -> None:
    class Slow(Cpu):
        def seconds(self, function: Any) -> float:
            function()
            return 2.0

    assert Rates.measured(Slow(), square=10, copied=100) == Rates(2 * 10**3 / 0.2, 200 / 0.2)
