"""Decoder layers compiled by torch.compile, each by itself: what stands between their matrix products becomes a few
fused kernels.

All layers of a kind share what is compiled, whatever the number of tokens. Our attention is left out, and so is the
last layer, which may be computed for some tokens only. It knows modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from tokenreward.models.attention import IMPLEMENTATION, segments_attention


def compile_layers(trunk: Any, num_layers: int) -> int:
    """How many of the layers are compiled from now on, at their first call; 0 if the trunk keeps no list of them."""
    as_it_is: Any = torch.compiler.disable
    AttentionInterface.register(IMPLEMENTATION, as_it_is(segments_attention))
    lists = (module for module in trunk.modules() if isinstance(module, nn.ModuleList))
    layers = next((found for found in lists if len(found) == num_layers), nn.ModuleList())
    for layer in layers[:-1]:
        layer.compile(dynamic=True)
    return max(0, len(layers) - 1)


def uncompile(trunk: Any) -> None:
    """Gives every part its own forward back."""
    for module in trunk.modules():
        vars(module).pop("_compiled_call_impl", None)
