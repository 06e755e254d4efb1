"""A gate: a network that weighs the labels of a value head by the prompt (ArmoRM: Wang et al. 2024,
2406.12845).

    r      = the labels at a token [k]
    g      = scale * softmax(MLP(h) / temperature)      [k]
    value  = sum_j g_j (r M)_j = sum_k r_k w_k,  w = M g

h is the state at the end of the prompt's last turn, so all tokens of a response have one g. M is
the matrix that takes verbosity out of the other labels. In the files of a checkpoint they are
`gating.layers.0.weight`, `gating.layers.1.weight`, ..., `gating.logit_scale` and
`reward_transform_matrix`; config.json may have a `gating_temperature`. This module knows no head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenreward.checkpoints.layers import compute, head_module, layers_of
from tokenreward.checkpoints.refusal import CheckpointRefused, few
from tokenreward.checkpoints.weight_files import read_tensor
from tokenreward.contract import Row
from tokenreward.errors import UnsupportedText

_NAME = re.compile(r"gating\.(layers\.\d+\.(weight|bias)|logit_scale)|reward_transform_matrix")
_SCALE, _MATRIX, _LAYERS = "gating.logit_scale", "reward_transform_matrix", "gating.layers."
_TEMPERATURE = 10.0  # of ArmoRM's own class, where config.json has none
CHOICES = (
    "`head: {label: ...}` serves one of the labels, `head: {label_weights: [...]}` a fixed sum"
)
# What a chat template writes between the prompt's last turn and the response. The gate reads the
# state at the first token of it, which ends that turn.
_ENDS = (
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",  # Llama 3
    "<end_of_turn>\n<start_of_turn>model\n",  # Gemma 2
)
# Where the parts are on a model.
_NETWORK, TRANSFORM = "label_gate", "label_transform"


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """The network and what it reads.

    Attributes:
        layers: The Linears of the MLP.
        activation: What stands between them.
        transform: scale * M [k, k].
        temperature: Of the softmax.
        end: The tokens that end a prompt: the gate reads the state at the first of them.
    """

    layers: tuple[nn.Linear, ...]
    activation: nn.Module
    transform: Tensor
    temperature: float
    end: tuple[int, ...]

    @classmethod
    def of(cls, model: Any) -> Gate | None:
        """The gate that `put_gate` has put on a model; None if there is none. Raises
        CheckpointRefused."""
        network = getattr(model, _NETWORK, None)
        if network is None:
            return None
        layers, transform = layers_of(network), getattr(model, TRANSFORM)
        num_labels = list(transform.shape)
        if layers is None or num_labels != 2 * [layers[0][-1].out_features]:
            raise CheckpointRefused(
                f"the gate that weighs its labels is no MLP, or its matrix {num_labels} is not of "
                f"as many labels: {CHOICES}"
            )
        device = layers[0][-1].weight.device
        if transform.device != device:  # of a split model, the network is on the last device
            transform = transform.to(device)
            setattr(model, TRANSFORM, transform)
        return cls(*layers, transform, *model.gate_reads)

    def place(self, row: Row) -> int:
        """The place in a row whose state the gate reads: where the prompt's last turn ends.

        Raises:
            UnsupportedText: The row has no such place, or the response has one, too.
        """
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(row.ids, (0, len(self.end)), constant_values=-1), len(self.end)
        )
        places = np.flatnonzero((windows == self.end).all(axis=1))
        if not len(places):
            raise UnsupportedText(
                "the model weighs its labels at the end of the prompt's last turn, and the chat "
                "template's ending of a prompt is not there: send the prompt as messages"
            )
        # An item without a prompt is one text, which holds it.
        if row.start > 1 and places[-1] + len(self.end) > row.start:
            raise UnsupportedText(
                "the model weighs its labels at the end of the prompt, and the response writes the "
                "chat template's ending of a prompt"
            )
        return int(places[-1])

    def weights(self, states: Tensor) -> Tensor:
        """The weights of the labels [n, k], float32, by states [n, h] of any dtype."""
        logits = compute(self.layers, self.activation, states)
        gates = torch.softmax(logits / self.temperature, dim=1)
        return gates @ self.transform.float().T


def gate_names(names: Iterable[str]) -> set[str]:
    """The names of a gate's tensors among those of a checkpoint."""
    return {name for name in names if _NAME.fullmatch(name)}


def put_gate(model: Any, file_of: Mapping[str, Path], tokenizer: Any) -> None:
    """Puts the gate of a checkpoint on its model, in float32, where `Gate.of` finds it. Nothing
    happens if there is none.

    Args:
        model: The model, whose configuration is changed.
        file_of: The checkpoint's tensors, as `find_tensors` gives them.
        tokenizer: transformers', which says what ends a prompt.

    Raises:
        CheckpointRefused: A part is missing or of another shape, or the prompt's end is unknown.
    """
    names = gate_names(file_of)
    if not names:
        return
    absent = sorted({_SCALE, _MATRIX, f"{_LAYERS}0.weight"} - names)
    if absent:
        raise CheckpointRefused(f"the gate that weighs its labels lacks {few(absent)}: {CHOICES}")
    tensors = {name: read_tensor(file_of[name], name) for name in names}
    layers = {}
    for name in sorted(name for name in names if name.startswith(_LAYERS)):
        number, kind = name.removeprefix(_LAYERS).split(".")
        # As in a Sequential, where activations have numbers, too.
        layers[f"{2 * int(number)}.{kind}"] = tensors[name]
    model.add_module(_NETWORK, head_module(layers))
    transform = tensors[_SCALE].float() * tensors[_MATRIX].float()
    model.register_buffer(TRANSFORM, transform, persistent=False)
    temperature = getattr(model.config, "gating_temperature", None)
    model.gate_reads = (float(temperature or _TEMPERATURE), _end_of_prompt(tokenizer))


def _end_of_prompt(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a prompt. Raises CheckpointRefused."""
    tokens: Mapping[str, int] = tokenizer.get_vocab()
    for text in _ENDS:
        if all(token in tokens for token in re.findall(r"<[^>]*>", text)):
            ids: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
            return tuple(ids)
    raise CheckpointRefused(
        "its score weighs the labels of its head by the state at the prompt's end, and the tokens "
        f"that end one ({few(repr(text) for text in _ENDS)}) are not in its tokenizer: {CHOICES}"
    )
