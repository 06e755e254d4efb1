"""A reward model's head: hidden states in, one value per token out.

It computes in float32 whatever the trunk's dtype:

    logits = W h + b, or of an MLP: W2 f(W1 h + b1) + b2, ...      (one per label)
    value  = (label - mean) / std
    label  = the logit, or logit[1] - logit[0] of two
             of any number: the one that the operator names, or sum_k weight_k logit_k

f is a ReLU unless the operator says otherwise. mean and std are 0 and 1 unless `affine` reads
others. It knows modules and tensors; which tensors of a checkpoint are its head is for
`head_formats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.affine import read_affine
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.settings import HeadSettings

_TILE_ROWS = 1024
# Where transformers' classes have their head. A head of another kind of checkpoint is put under the
# first of these names.
_ATTRIBUTES = ("score", "classifier")
ATTRIBUTE = _ATTRIBUTES[0]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True, slots=True, eq=False)
class ValueHead:
    """One Linear, or several with an activation between two of them, and the affine behind it.

    Attributes:
        layers: The Linears, in the order in which they are computed.
        activation: What stands between them.
        mean: Subtracted from the label.
        std: The label is divided by it after that.
        note: The head in words, for the log.
        label_weights: Of the labels' weighted sum [k]; None for one label, or the difference of
            two.
        label_names: What each label is called; empty where `label_weights` is None.
    """

    layers: tuple[nn.Linear, ...]
    activation: nn.Module
    mean: float
    std: float
    note: str
    label_weights: Tensor | None = None
    label_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Any, settings: HeadSettings | None = None) -> ValueHead:
        """The head on a model, with the affine of the model's configuration.

        Args:
            model: The model.
            settings: Which of its labels is the value.

        Raises:
            CheckpointRefused: There is no head that can be computed, or several labels and none is
                named.
        """
        modules = (getattr(model, name, None) for name in _ATTRIBUTES)
        layers = _layers_of(next((module for module in modules if module is not None), None))
        if layers is None:
            raise CheckpointRefused(
                f"{type(model).__name__} has no head over every token that is a Linear, or Linears "
                "with one activation between them"
            )
        linears, activation = layers
        if settings and "activation" in settings.model_fields_set and len(linears) == 1:
            raise CheckpointRefused("`head: {activation: ...}` has no effect: the head is a Linear")
        num_labels = linears[-1].out_features
        names = label_names(model.config, num_labels)
        weights = label_weights(names, settings)
        shapes = [f"Linear({layer.in_features}, {layer.out_features})" for layer in linears]
        note = f", {type(activation).__name__}, ".join(shapes)
        mean, std, affine_note = read_affine(model.config)
        if weights is not None:
            labels = [f"{w:g} {name}" for w, name in zip(weights, names, strict=True) if w]
            note = f"{note}, {' + '.join(labels)}{affine_note}"
            on_device = torch.tensor(weights, device=linears[-1].weight.device)
            return cls(linears, activation, mean, std, note, on_device, names)
        if num_labels == 2:
            note += ", logit[1] - logit[0]"
        return cls(linears, activation, mean, std, note + affine_note)

    def values(self, hidden: Tensor) -> Tensor:
        """The value [n], float32, at hidden [n, h] of any dtype."""
        if not len(hidden):
            return hidden.new_empty(0, dtype=torch.float32)
        tiles = torch.split(hidden, _TILE_ROWS)
        return torch.cat([self.of_logits(self.logits(tile)) for tile in tiles])

    def of_logits(self, logits: Tensor) -> Tensor:
        """The value [n], float32, of logits [n, labels]."""
        wide = logits.float()
        label = wide[:, 0]
        if self.label_weights is not None:
            label = (wide * self.label_weights).sum(dim=1)
        elif wide.shape[1] == 2:
            label = wide[:, 1] - label
        if (self.mean, self.std) == (0.0, 1.0):
            return label
        return (label - self.mean) / self.std

    def logits(self, rows: Tensor) -> Tensor:
        """Every label's logit [n, k], float32, at hidden [n, h] of any dtype."""
        x = rows.float()
        for index, layer in enumerate(self.layers):
            if index:
                x = self.activation(x)
            bias = None if layer.bias is None else layer.bias.float()
            x = nn.functional.linear(x, layer.weight.float(), bias)
        return x


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
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict(state)
    return layer.requires_grad_(False)


def _layers_of(module: object) -> tuple[tuple[nn.Linear, ...], nn.Module] | None:
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


def label_names(config: Any, num_labels: int) -> tuple[str, ...]:
    """What each label is called: by config.json, if it has names for just these labels."""
    names = getattr(config, "id2label", None) or {}
    labels = [str(names.get(label, f"LABEL_{label}")) for label in range(num_labels)]
    if len(names) != num_labels or len(set(labels)) != num_labels:
        labels = [f"LABEL_{label}" for label in range(num_labels)]
    return tuple(labels)


def label_weights(names: Sequence[str], settings: HeadSettings | None) -> list[float] | None:
    """The weight of each label; None for a single label, or the difference of two.

    Raises:
        CheckpointRefused: There are more than two labels and no setting, or the setting is for
            other labels than there are.
    """
    labels = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    label = None if settings is None else settings.label
    weights = None if settings is None else settings.label_weights
    if label is not None and label >= len(names):
        raise CheckpointRefused(
            f"`label` is {label}; the value head's labels are 0 to {len(names) - 1}: {labels}"
        )
    if weights is not None and len(weights) != len(names):
        raise CheckpointRefused(
            f"`label_weights` has {len(weights)} entries for the {len(names)} labels of the value "
            f"head: {labels}"
        )
    if label is not None:
        return [float(index == label) for index in range(len(names))]
    if weights is not None:
        return list(weights)
    if len(names) > 2:
        raise CheckpointRefused(
            f"the value head has {len(names)} labels ({labels}): `head: {{label: ...}}` says which "
            "is the reward, or `head: {label_weights: [...]}` how they add up to it"
        )
    return None
