"""The model's own forward beside a model that serves: the same tensors, another tree of modules."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fakes import tiny
from tokenreward.contract import Needs, RowRequest
from tokenreward.forward.layout import numbers
from tokenreward.forward.own_forward import OwnForward, in_float32, second_tree
from tokenreward.forward.plain import PlainLayout
from tokenreward.forward.trial import random_rows

FAMILIES = ["llama", "gemma4", "gpt_oss", "mamba", "qwen3_next", "bloom", "phi3_longrope"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_in_float32_gives_to_the_bit_what_a_float32_copy_gives(family: str) -> None:
    checkpoint = tiny.checkpoint(tiny.model(family).to(torch.bfloat16))
    requests = [
        RowRequest(row, Needs(temperatures=frozenset({1.0}))) for row in random_rows(checkpoint)
    ]
    whole = replace(checkpoint, model=copy.deepcopy(checkpoint.model).float())
    own = replace(checkpoint, model=second_tree(checkpoint.model))
    with in_float32(own.model):
        outputs = PlainLayout(own).run(requests)
    for ours, theirs in zip(outputs, PlainLayout(whole).run(requests), strict=True):
        for kind, values in numbers(theirs).items():
            np.testing.assert_array_equal(numbers(ours)[kind], values)
    assert {parameter.dtype for parameter in own.model.parameters()} == {torch.bfloat16}


def test_a_second_tree_shares_every_tensor_and_nothing_else() -> None:
    model = tiny.model("gemma3")
    own = second_tree(model)
    theirs = dict(model.named_parameters()) | dict(model.named_buffers())
    ours = dict(own.named_parameters()) | dict(own.named_buffers())
    assert {name: id(tensor) for name, tensor in ours.items()} == {
        name: id(tensor) for name, tensor in theirs.items()
    }
    assert not set(own.modules()) & set(model.modules())
    assert own.config is not model.config


def test_one_layer_is_in_float32_at_a_time_and_the_served_model_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = tiny.checkpoint(tiny.model("llama").to(torch.bfloat16))
    own = replace(checkpoint, model=second_tree(checkpoint.model))
    layers = own.model.model.layers
    wide: list[int] = []

    def look(*_: object) -> None:
        wide.append(sum(_is_wide(layer) for layer in layers))
        assert not any(_is_wide(module) for module in checkpoint.model.modules())
        assert not _is_wide(own.model.get_input_embeddings())

    for layer in layers:
        layer.mlp.register_forward_hook(look)
    with in_float32(own.model):
        PlainLayout(own).run(
            [RowRequest(random_rows(own)[0], Needs(temperatures=frozenset({1.0})))]
        )
    assert wide == [1, 1, 1]


def _is_wide(module: nn.Module) -> bool:
    return any(parameter.dtype == torch.float32 for parameter in module.parameters())


def test_a_part_that_raises_leaves_the_tree_as_it_was() -> None:
    own = second_tree(tiny.model("llama").to(torch.bfloat16))

    def fail(*_: Any) -> None:
        raise ValueError("a layer fails")

    own.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(ValueError, match="a layer fails"), in_float32(own):
        own(input_ids=torch.arange(1, 5)[None])
    assert not _is_wide(own)


def test_without_room_for_a_float32_copy_at_load_the_truth_is_in_the_dtype_of_the_model() -> None:
    checkpoint = tiny.checkpoint(tiny.model("llama").to(torch.bfloat16))
    requests = tiny.work(Needs(temperatures=frozenset({1.0})))
    own = OwnForward(checkpoint, requests)
    own.is_exact = False
    *parts, gap = own.gaps(PlainLayout(checkpoint))
    assert parts == [None] * len(requests)
    assert gap is not None
    assert gap.difference == 0.0
