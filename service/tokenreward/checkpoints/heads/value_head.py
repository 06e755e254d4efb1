"""A reward model's head: hidden states in, one value per token out.

It computes in float32 whatever the trunk's dtype:

    logits = W h + b, or of an MLP: W2 f(W1 h + b1) + b2, ...      (one per label)
    value  = (label - mean) / std
    label  = the logit, or logit[1] - logit[0] of two
             of any number: the one that the operator names, or sum_k weight_k logit_k,
             where the weights are the operator's, or a gate's for the row (see `gate`)

f is a ReLU unless the operator says otherwise. mean and std are 0 and 1 unless `affine` reads
others. It knows modules and tensors; which tensors of a checkpoint are its head is for
`head_formats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenreward.checkpoints.heads.affine import read_affine
from tokenreward.checkpoints.heads.gate import CHOICES, Gate
from tokenreward.checkpoints.layers import compute, layers_of
from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.settings import HeadSettings

_TILE_ROWS = 1024
# Where transformers' classes have their head. A head of another kind of checkpoint is put under the
# first of these names.
_ATTRIBUTES = ("score", "classifier")
ATTRIBUTE = _ATTRIBUTES[0]


@dataclass(slots=True, eq=False)
class ValueHead:
    """One Linear, or several with an activation between two of them, and the affine behind it. The
    affine changes with the weights.

    Attributes:
        layers: The Linears, in the order in which they are computed.
        activation: What stands between them.
        mean: Subtracted from the label.
        std: The label is divided by it after that.
        note: The head in words, for the log.
        label_weights: Of the labels' weighted sum [k]; None for one label, or the difference of
            two.
        label_names: What each label is called; empty where one label, or the difference of two, is
            the value.
        gate: What gives the weights of the labels for each row, where the operator names none.
    """

    layers: tuple[nn.Linear, ...]
    activation: nn.Module
    mean: float
    std: float
    note: str
    label_weights: Tensor | None = None
    label_names: tuple[str, ...] = ()
    gate: Gate | None = None

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
        layers = layers_of(next((module for module in modules if module is not None), None))
        if layers is None:
            raise CheckpointRefused(
                f"{type(model).__name__} has no head over every token that is a Linear, or Linears "
                "with one activation between them"
            )
        linears, activation = layers
        if settings and "activation" in settings.model_fields_set and len(linears) == 1:
            raise CheckpointRefused("`head: {activation: ...}` has no effect: the head is a Linear")
        num_labels = linears[-1].out_features
        names, gate = label_names(model.config, num_labels), Gate.of(model)
        shapes = [f"Linear({layer.in_features}, {layer.out_features})" for layer in linears]
        note = f", {type(activation).__name__}, ".join(shapes)
        mean, std, affine_note = read_affine(model.config)
        if gate is not None:
            if len(gate.transform) != num_labels:
                raise CheckpointRefused(
                    f"its gate weighs {len(gate.transform)} labels, and the head has {num_labels}: "
                    f"{CHOICES}"
                )
            note += f", weighed by a gate at the prompt's end{affine_note}"
            return cls(linears, activation, mean, std, note, None, names, gate)
        weights = label_weights(names, settings)
        if weights is not None:
            labels = [f"{w:g} {name}" for w, name in zip(weights, names, strict=True) if w]
            note = f"{note}, {' + '.join(labels)}{affine_note}"
            device = linears[-1].weight.device
            on_device = torch.tensor(weights, dtype=torch.float32, device=device)
            return cls(linears, activation, mean, std, note, on_device, names)
        if num_labels == 2:
            note += ", logit[1] - logit[0]"
        return cls(linears, activation, mean, std, note + affine_note)

    def values(self, hidden: Tensor, weights: Tensor | None = None) -> Tensor:
        """The value [n], float32, at hidden [n, h] of any dtype.

        Args:
            hidden: The states.
            weights: Those of the labels [n, k], of a head that has a gate.
        """
        if not len(hidden):
            return hidden.new_empty(0, dtype=torch.float32)
        tiles = torch.split(hidden, _TILE_ROWS)
        if weights is None:
            return torch.cat([self.of_logits(self.logits(tile)) for tile in tiles])
        of_tiles = zip(tiles, torch.split(weights, _TILE_ROWS), strict=True)
        return torch.cat([self.of_logits(self.logits(tile), own) for tile, own in of_tiles])

    def of_logits(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """The value [n], float32, of logits [n, labels]; the weights are as those of `values`."""
        wide = logits.float()
        label = wide[:, 0]
        if weights is None:
            weights = self.label_weights
        if weights is not None:
            label = (wide * weights).sum(dim=1)
        elif wide.shape[1] == 2:
            label = wide[:, 1] - label
        if (self.mean, self.std) == (0.0, 1.0):
            return label
        return (label - self.mean) / self.std

    def logits(self, rows: Tensor) -> Tensor:
        """Every label's logit [n, k], float32, at hidden [n, h] of any dtype."""
        return compute(self.layers, self.activation, rows)


def label_names(config: Any, num_labels: int) -> tuple[str, ...]:
    """What each label is called: by config.json, if it has names for just these labels."""
    names = getattr(config, "id2label", None) or {}
    labels = [str(names.get(label, f"LABEL_{label}")) for label in range(num_labels)]
    if len(names) != num_labels or len(set(labels)) != num_labels:
        labels = [f"LABEL_{label}" for label in range(num_labels)]
    return tuple(labels)


def names_value(settings: HeadSettings | None) -> bool:
    """Whether the operator says which label is the value, or how labels add up to it."""
    return settings is not None and (settings.label, settings.label_weights) != (None, None)


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
