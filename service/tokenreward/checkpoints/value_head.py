"""A reward model's head: hidden states in, one value per token out.

It computes in float32 whatever the trunk's dtype:

    logits = W h + b, or W2 relu(W1 h + b1) + b2      (1 or 2 of them)
    value  = (label - mean) / std
    label  = the logit, or logit[1] - logit[0] of two

mean and std are 0 and 1 unless the checkpoint's configuration, or the operator, sets
`normalize_reward` (OpenRLHF's eval-mode forward). It knows modules and tensors; which tensors of a
checkpoint are its head is for `head_formats`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.refusal import CheckpointRefused

_TILE_ROWS = 1024
# Where transformers' classes have their head. A head of another kind of checkpoint is put under the
# first of these names.
_ATTRIBUTES = ("score", "classifier")
ATTRIBUTE = _ATTRIBUTES[0]


@dataclass(frozen=True, slots=True, eq=False)
class ValueHead:
    """One Linear, or two with a ReLU between them, and the affine behind it.

    Attributes:
        layers: The Linears, in the order in which they are computed.
        mean: Subtracted from the label.
        std: The label is divided by it after that.
        note: The head in words, for the log.
    """

    layers: tuple[nn.Linear, ...]
    mean: float
    std: float
    note: str

    @classmethod
    def of(cls, model: Any) -> ValueHead:
        """The head on a model, with the affine of the model's configuration. Raises
        CheckpointRefused."""
        modules = (getattr(model, name, None) for name in _ATTRIBUTES)
        layers = _layers_of(next((module for module in modules if module is not None), None))
        if layers is None:
            raise CheckpointRefused(
                f"{type(model).__name__} has no head over every token that is a Linear, or "
                "Linear, ReLU, Linear"
            )
        num_labels = layers[-1].out_features
        if num_labels not in (1, 2):
            raise CheckpointRefused(
                f"the value head has {num_labels} labels; a reward model has 1 or 2"
            )
        shapes = [f"Linear({layer.in_features}, {layer.out_features})" for layer in layers]
        note = ", ReLU, ".join(shapes)
        if num_labels == 2:
            note += ", logit[1] - logit[0]"
        mean, std, affine_note = _affine(model.config)
        return cls(layers, mean, std, note + affine_note)

    def values(self, hidden: Tensor) -> Tensor:
        """The value [n], float32, at hidden [n, h] of any dtype."""
        if not len(hidden):
            return hidden.new_empty(0, dtype=torch.float32)
        tiles = torch.split(hidden, _TILE_ROWS)
        return torch.cat([self.of_logits(self._logits(tile)) for tile in tiles])

    def of_logits(self, logits: Tensor) -> Tensor:
        """The value [n], float32, of logits [n, labels]."""
        wide = logits.float()
        label = wide[:, 0]
        if wide.shape[1] == 2:
            label = wide[:, 1] - label
        if (self.mean, self.std) == (0.0, 1.0):
            return label
        return (label - self.mean) / self.std

    def _logits(self, rows: Tensor) -> Tensor:
        x = rows.float()
        for index, layer in enumerate(self.layers):
            if index:
                x = torch.relu(x)
            bias = None if layer.bias is None else layer.bias.float()
            x = nn.functional.linear(x, layer.weight.float(), bias)
        return x


def head_module(tensors: dict[str, Tensor]) -> nn.Module:
    """The module that has these tensors as its state, in float32.

    Args:
        tensors: `weight` of a Linear, or `0.weight` and `2.weight` of two with a ReLU between
            them; each maybe with its `bias`.

    Raises:
        CheckpointRefused: The shapes are no weight and bias of a Linear.
    """
    if "weight" in tensors:
        return _linear(tensors["weight"], tensors.get("bias"))
    first = _linear(tensors["0.weight"], tensors.get("0.bias"))
    second = _linear(tensors["2.weight"], tensors.get("2.bias"))
    return nn.Sequential(first, nn.ReLU(), second)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    state = {"weight": weight.float()}
    if bias is not None:
        state["bias"] = bias.float()
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = " and ".join(str(list(tensor.shape)) for tensor in state.values())
        raise CheckpointRefused(
            f"the value head's tensors {shapes} are no weight and bias of a Linear"
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict(state)
    return layer.requires_grad_(False)


def _layers_of(module: object) -> tuple[nn.Linear, ...] | None:
    """The Linears of a head that `ValueHead` computes as it is; None for any other module."""
    if isinstance(module, nn.Linear):
        return (module,)
    if not isinstance(module, nn.Sequential):
        return None
    if [type(layer) for layer in module] != [nn.Linear, nn.ReLU, nn.Linear]:
        return None
    first, second = module[0], module[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return first, second


def _affine(config: Any) -> tuple[float, float, str]:
    """mean and std to apply, and a note on them. Raises CheckpointRefused."""
    values: dict[str, Any] = {}
    for name in ("mean", "std"):
        value = getattr(config, name, None)
        if value is not None:
            values[name] = value
    if not getattr(config, "normalize_reward", None):
        if len(values) < 2:
            return 0.0, 1.0, ""
        # OpenRLHF's trainer writes both into every reward model that it saves; using them is a flag
        # of its own.
        note = (
            f"; mean {values['mean']} and std {values['std']} of config.json are not applied "
            "(`normalize_reward` is not set)"
        )
        return 0.0, 1.0, note
    if not values:
        raise CheckpointRefused(
            "`normalize_reward` is set and config.json has no `mean` and `std` to normalise by"
        )
    if len(values) == 1:
        (name,) = values
        raise CheckpointRefused(f"`normalize_reward` is set and config.json has only `{name}`")
    try:
        mean, std = float(values["mean"]), float(values["std"])
    except (TypeError, ValueError):
        mean, std = math.nan, math.nan
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointRefused(
            f"`normalize_reward` is set, and of config.json's mean {values['mean']!r} and std "
            f"{values['std']!r} both must be finite and std above 0"
        )
    return mean, std, f", then (value - {mean:g}) / {std:g} as `normalize_reward` says"
