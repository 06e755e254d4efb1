"""What a pass must compute and move, and so the most tokens per second that a device's own rates
allow.

FLOPs are counted as two per multiply-add; causal attention meets half of its map. It knows shapes
and rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpu.clock import Clock
from gpu.shapes import Shape

# Bytes per element that transformers' own modules read and write, operator by operator, in bfloat16
# and float32.
_NORM, _ROTARY, _GATE, _RESIDUAL = 36, 20, 10, 6
_NUM_TIMED = 10


@dataclass(frozen=True)
class Rates:
    """Of one device, measured: bfloat16 matrix product, and copy (bytes read and bytes written)."""

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def measured(cls, clock: Clock, *, square: int, copied: int) -> Rates:
        draw = lambda: torch.randn(square, square, device=clock.device).bfloat16()  # noqa: E731
        left, right, product = draw(), draw(), draw()
        source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=clock.device)
        target = torch.empty_like(source)

        def multiply() -> None:
            torch.mm(left, right, out=product)

        def copy() -> None:
            target.copy_(source)

        multiply_s, copy_s = (_seconds(clock, work) for work in (multiply, copy))
        return cls(2 * square**3 / multiply_s, 2 * copied / copy_s)


def _seconds(clock: Clock, work: Callable[[], None]) -> float:
    def all_of_them() -> None:
        for _ in range(_NUM_TIMED):
            work()

    all_of_them()
    return clock.seconds(all_of_them) / _NUM_TIMED


def flops(shape: Shape, lengths: Sequence[int], num_scored: int) -> float:
    """Of a pass over sequences that share nothing, the language head on `num_scored` rows."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.hidden * (queries + 2 * keys) + queries * shape.hidden
    weights = shape.layers * (attention + 3 * shape.hidden * shape.mlp)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    scores = shape.layers * 2 * queries * pairs  # q k and p v
    return 2.0 * (weights * sum(lengths) + scores + num_scored * shape.hidden * shape.vocab)


def elementwise_bytes(shape: Shape, num_tokens: int) -> float:
    """What transformers' modules move between the matrix products of a trunk."""
    rotated = (shape.heads + shape.kv_heads) * shape.head_dim
    normed = 2 * shape.hidden + (rotated if shape.has_head_norms else 0)
    layer = _NORM * normed + _ROTARY * rotated + _GATE * shape.mlp + _RESIDUAL * 2 * shape.hidden
    return float(num_tokens * (shape.layers * layer + _NORM * shape.hidden))


@dataclass(frozen=True)
class Bound:
    """Seconds of a pass at best. `ideal`: nothing but FLOPs, at the rate of a large matrix product.
    `elementwise`: and what transformers' modules move, at the rate of a copy."""

    ideal_s: float
    elementwise_s: float

    @classmethod
    def of(cls, shape: Shape, lengths: Sequence[int], num_scored: int, rates: Rates) -> Bound:
        ideal_s = flops(shape, lengths, num_scored) / rates.flops_per_s
        return cls(ideal_s, ideal_s + elementwise_bytes(shape, sum(lengths)) / rates.bytes_per_s)
