"""The floor under a pass on one thread: its matrix products alone, at the speed that each of their
shapes has alone.

Attention, norms and everything else come on top. It knows the shapes of a Qwen3 and no layouts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from tokenreward.forward.patches import Linear

_NUM_TIMED = 5
_PIECE = 512  # rows of a product that is timed
_COLUMNS = 4096  # of the head, at most


@dataclass(frozen=True)
class Product:
    """[rows, inner] x [inner, columns], `rows` of it in all."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns


def products(config: Any, *, num_tokens: int, num_scored: int) -> list[Product]:
    """Those of a pass: of every token through the layers, and of the scored ones through the
    head."""
    h, layers, mlp = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    queries, keys = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    n = num_tokens * layers
    trunk = [(h, queries), (h, keys), (h, keys), (queries, h), (h, mlp), (h, mlp), (mlp, h)]
    return [Product(n, *each) for each in trunk] + [Product(num_scored, h, config.vocab_size)]


def floor_s(wanted: list[Product], linear: Linear) -> float:
    """CPU seconds of these products through `linear`, from a piece of each."""
    return sum(product.flops / _rate(product, linear) for product in wanted)


@torch.inference_mode()
def _rate(product: Product, linear: Linear) -> float:
    columns = min(product.columns, _COLUMNS)
    x, weight = torch.randn(_PIECE, product.inner), torch.randn(columns, product.inner)
    taken = []
    for _ in range(1 + _NUM_TIMED):
        began = time.process_time()
        linear(x, weight, None)
        taken.append(time.process_time() - began)
    return 2.0 * _PIECE * product.inner * columns / median(taken[1:])
