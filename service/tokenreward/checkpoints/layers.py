"""The layers of a head: a Linear, or several with an activation between two of them.

They are made of tensors, found in a module, and computed in float32 whatever their dtype. This
module knows no names of a checkpoint's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.refusal import CheckpointRefused

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def head_module(tensors: dict[str, Tensor], activation: str = "relu") -> nn.Module:
    """The module that has these tensors as its state, in float32.

    Args:
        tensors: `weight` of a Linear, or `0.weight`, `2.weight`, ... of several with an activation
            between them; each maybe with its `bias`.
        activation: A key of `ACTIVATIONS`.

    Raises:
        CheckpointRefused: The shapes are no weight and bias of a Linear, or the Linears do not
            follow one another.
    """
    if "weight" in tensors:
        return _linear(tensors["weight"], tensors.get("bias"))
    modules: list[nn.Module] = []
    for number in sorted({int(place.split(".")[0]) for place in tensors}):
        if modules:
            modules.append(ACTIVATIONS[activation]())
        modules.append(_linear(tensors[f"{number}.weight"], tensors.get(f"{number}.bias")))
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    for layer, following in pairwise(linears):
        if layer.out_features != following.in_features:
            raise CheckpointRefused(
                f"the value head's layers do not follow one another: one gives "
                f"{layer.out_features} numbers, the next reads {following.in_features}"
            )
    return nn.Sequential(*modules)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    state = {"weight": weight.float()}
    if bias is not None:
        state["bias"] = bias.float()
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = " and ".join(str(list(tensor.shape)) for tensor in state.values())
        raise CheckpointRefused(
            f"the value head's tensors {shapes} are no weight and bias of a Linear"
        )
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, dtype=torch.float32)
    layer.load_state_dict(state)
    return layer.requires_grad_(False)


def layers_of(module: object) -> tuple[tuple[nn.Linear, ...], nn.Module] | None:
    """The Linears of a head that `ValueHead` computes as it is, and the activation between them;
    None for any other module."""
    if isinstance(module, nn.Linear):
        return (module,), nn.Identity()
    if not isinstance(module, nn.Sequential) or len(module) < 3:
        return None
    layers = list(module)
    linears = [layer for layer in layers[::2] if isinstance(layer, nn.Linear)]
    kinds = {type(layer) for layer in layers[1::2]}
    if 2 * len(linears) - 1 != len(layers) or len(kinds) != 1:
        return None
    if not kinds <= set(ACTIVATIONS.values()):
        return None
    return tuple(linears), layers[1]


def compute(layers: Sequence[nn.Linear], activation: nn.Module, rows: Tensor) -> Tensor:
    """What the last layer gives [n, k], float32, at rows [n, h] of any dtype."""
    x = rows.float()
    for index, layer in enumerate(layers):
        if index:
            x = activation(x)
        bias = None if layer.bias is None else layer.bias.float()
        x = nn.functional.linear(x, layer.weight.float(), bias)
    return x
