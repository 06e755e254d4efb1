"""The floor under a pass: every matrix product of the model is counted, with its size."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import floor, workload
from tokenreward.forward.patches import torch_linear

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 96,
}


def test_the_products_are_those_that_the_model_multiplies() -> None:
    model = workload.language_model(500, **SHAPE)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 40, dtype=torch.long), use_cache=False)
    of_matmuls = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    wanted = floor.products(model.config, num_tokens=40, num_scored=40)
    assert sum(product.flops for product in wanted) == of_matmuls


def test_the_floor_grows_with_the_rows() -> None:
    config = workload.config(500, **SHAPE)
    few, many = (floor.products(config, num_tokens=n, num_scored=n) for n in (1000, 100_000))
    assert floor.floor_s(many, torch_linear) > 10 * floor.floor_s(few, torch_linear) > 0
