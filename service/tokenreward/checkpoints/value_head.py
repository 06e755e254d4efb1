"""A reward model's head: hidden states in, one value per token out, in float32 whatever the trunk's
dtype.

    logits = W h + b, or W2 relu(W1 h + b1) + b2      (1 or 2 of them)
    value  = (label - mean) / std                     label = the logit, or logit[1] - logit[0] of two

mean and std are 0 and 1 unless the checkpoint's configuration, or the operator, says
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
_ATTRIBUTES = (
    "score",
    "classifier",
)  # of transformers' classes; a head that they do not know is put under the first
ATTRIBUTE = _ATTRIBUTES[0]


@dataclass(frozen=True, slots=True, eq=False)
class ValueHead:
    """One Linear, or two with a ReLU between them. `note` says in words what it is."""

    layers: tuple[nn.Linear, ...]
    mean: float
    std: float
    note: str

    @classmethod
    def of(cls, model: Any) -> ValueHead:
        """The head on a model, and the affine of its configuration. Raises CheckpointRefused."""
        module = next(
            (found for name in _ATTRIBUTES if (found := getattr(model, name, None)) is not None),
            None,
        )
        layers = _layers(module)
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
        mean, std, said = _affine(model.config)
        return cls(layers, mean, std, f"{_shape(layers)}{said}")

    def values(self, hidden: Tensor) -> Tensor:
        """The value [n], float32, at hidden [n, h] of any dtype."""
        found = [self.of_logits(self._logits(rows)) for rows in torch.split(hidden, _TILE_ROWS)]
        return torch.cat(found) if found else hidden.new_empty(0, dtype=torch.float32)

    def of_logits(self, logits: Tensor) -> Tensor:
        """The value [n], float32, of logits [n, labels]."""
        wide = logits.float()
        label = wide[:, 0] if wide.shape[1] == 1 else wide[:, 1] - wide[:, 0]
        return label if (self.mean, self.std) == (0.0, 1.0) else (label - self.mean) / self.std

    def _logits(self, rows: Tensor) -> Tensor:
        x = rows.float()
        for index, layer in enumerate(self.layers):
            bias = None if layer.bias is None else layer.bias.float()
            x = nn.functional.linear(torch.relu(x) if index else x, layer.weight.float(), bias)
        return x


def head_module(tensors: dict[str, Tensor]) -> nn.Module:
    """The module that these tensors are the state of: `weight` of a Linear, or `0.weight` and
    `2.weight` of two."""
    if "weight" in tensors:
        return _linear(tensors["weight"], tensors.get("bias"))
    first, second = (
        _linear(tensors[f"{place}.weight"], tensors.get(f"{place}.bias")) for place in (0, 2)
    )
    return nn.Sequential(first, nn.ReLU(), second)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = f"{list(weight.shape)}{'' if bias is None else f' and {list(bias.shape)}'}"
        raise CheckpointRefused(
            f"the value head's tensors {shapes} are no weight and bias of a Linear"
        )
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict(
        {"weight": weight.float()} | ({} if bias is None else {"bias": bias.float()})
    )
    return layer.requires_grad_(False)


def _layers(module: object) -> tuple[nn.Linear, ...] | None:
    """The Linears of a head that is computed as one is here; None for any other module."""
    if isinstance(module, nn.Linear):
        return (module,)
    if isinstance(module, nn.Sequential) and [type(part) for part in module] == [
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]:
        first, second = module[0], module[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        return first, second
    return None


def _shape(layers: tuple[nn.Linear, ...]) -> str:
    shape = ", ReLU, ".join(
        f"Linear({layer.in_features}, {layer.out_features})" for layer in layers
    )
    return shape if layers[-1].out_features == 1 else f"{shape}, logit[1] - logit[0]"


def _affine(config: Any) -> tuple[float, float, str]:
    """mean and std to apply, and what to say of them. Raises CheckpointRefused."""
    given: dict[str, Any] = {name: getattr(config, name, None) for name in ("mean", "std")}
    there = {name: value for name, value in given.items() if value is not None}
    if not getattr(config, "normalize_reward", None):
        # OpenRLHF's trainer writes both into every reward model that it saves; using them is a flag
        # of its own.
        idle = (
            f"; mean {there['mean']} and std {there['std']} of config.json are not applied"
            if len(there) == 2
            else ""
        )
        return 0.0, 1.0, f"{idle} (`normalize_reward` is not set)" if idle else ""
    if not there:
        raise CheckpointRefused(
            "`normalize_reward` is set and config.json has no `mean` and `std` to normalise by"
        )
    if len(there) == 1:
        raise CheckpointRefused(
            f"`normalize_reward` is set and config.json has only `{next(iter(there))}`"
        )
    try:
        mean, std = float(given["mean"]), float(given["std"])
    except (TypeError, ValueError):
        mean, std = math.nan, math.nan
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise CheckpointRefused(
            f"`normalize_reward` is set, and of config.json's mean {given['mean']!r} and std "
            f"{given['std']!r} "
            "both must be finite and std above 0"
        )
    return mean, std, f", then (value - {mean:g}) / {std:g} as `normalize_reward` says"
