"""Reads the heads of a pass, row by row: computed on the device, and sent to the host in one copy.

It also keeps the heads for the layouts that run several rows in a call. It knows requests for rows
and places of tokens, and does not know how the rows went through the layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.heads.gate import Gate
from tokenreward.checkpoints.heads.value_head import ValueHead
from tokenreward.contract import Outputs, Reading, Row, RowRequest
from tokenreward.forward.language_head import LanguageHead
from tokenreward.forward.logits import LogitReadout
from tokenreward.forward.patches import Linear, patch_linears, torch_linear
from tokenreward.forward.transfer import Pending, to_device, to_host

# Token ids and ranks travel as float32, too, which holds every integer up to 2^24.
_INTEGERS = ("top_ids", "ranks")


class BatchedLayout:
    """What the layouts share that run several rows in a call: the checkpoint's heads, and the
    operators that linear layers and heads are computed through.

    Args:
        checkpoint: The model.

    Attributes:
        language_head: The head of a language model.
        linear: The operator that float32 linears are computed through; None if it is torch's own.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.linear: Linear | None = None
        self.language_head: LanguageHead | None = None
        self._value_head: ValueHead | None = None
        if checkpoint.task == "causal_lm":
            self.language_head = LanguageHead.of(checkpoint)
        else:
            self._value_head = checkpoint.value_head

    @property
    def gate(self) -> Gate | None:
        """What weighs the labels of the value head by the prompt, if something does."""
        return None if self._value_head is None else self._value_head.gate

    def compute_linears_through(self, linear: Linear | None) -> None:
        """Computes float32 linear layers and the language head through an operator; None gives them
        back torch's own."""
        self.linear = linear
        patch_linears(self._checkpoint.model, linear)
        if self.language_head is not None:
            self.language_head = replace(self.language_head, linear=linear or torch_linear)

    def choose_logsumexp(self) -> float:
        """Lets the language head take the fastest logsumexp of a GPU.

        Returns:
            How many times as fast as the one in place it is.
        """
        if self.language_head is None:
            return 1.0
        self.language_head, gain = self.language_head.with_fastest_logsumexp()
        return gain


class Readout:
    """Reads the outputs of one pass from the last hidden states of its trunk.

    The `add_*` methods compute numbers on the device and note which of them belong to which row.
    Then `send` launches the copy of these numbers to the host.

    Args:
        requests: The rows of the pass, and what is wanted of them.
        states: Hidden states [m, h], in the model's dtype, on the device.
        places: [m], ascending: the place in the packed sequence of each state.
        places_of_rows: For each row, the places of its tokens in the packed sequence.
    """

    def __init__(
        self,
        requests: Sequence[RowRequest],
        states: Tensor,
        places: np.ndarray,
        places_of_rows: Sequence[np.ndarray],
    ) -> None:
        self._requests = requests
        self._states = states
        self._places = places
        self._places_of_rows = places_of_rows
        self._tensors: list[Tensor] = []
        # For each row, the parts of each field of `Outputs`; a field that is a dict has a dict.
        # A part is the number of a tensor that is sent, and an index into it.
        self._parts: list[dict[str, Any]] = [{} for _ in requests]

    def send(self) -> Pending[list[Outputs]]:
        """Launches the copy of all numbers to the host.

        Returns:
            The outputs of each row, in order. They hold no hidden states and none of the numbers
            on the device, which would fill its memory while the next pass runs.
        """
        return Pending(partial(_outputs, self._parts, to_host(self._tensors)))

    def add_attention(self, readings_of_rows: Mapping[int, Mapping[Reading, Tensor]]) -> None:
        """Adds readings of the last layer's attention, for the rows that have any."""
        for index, readings in readings_of_rows.items():
            self._parts[index]["attention"] = {
                name: (self._add(tensor), ...) for name, tensor in readings.items()
            }

    def add_values(self, head: ValueHead) -> None:
        """Adds the value head, if a row wants it. It costs little, so every state is read."""
        if not any(needs.values or needs.pooled for _, needs in self._requests):
            return
        last_places = [places[-1] for places in self._places_of_rows]
        ends = np.searchsorted(self._places, last_places)
        if head.label_names:
            (at,) = to_device([ends], self._states.device)
            labels = self._add(head.logits(self._states[at]))
            for index, parts in enumerate(self._parts):
                parts["scores"] = {
                    name: (labels, (index, k)) for k, name in enumerate(head.label_names)
                }
        if head.gate is not None:
            self._add_gated_values(head, head.gate, ends)
            return
        number = self._add(head.values(self._states))
        for index, (row, needs) in enumerate(self._requests):
            self._parts[index]["pooled"] = (number, int(ends[index]))
            if needs.values:
                self._parts[index]["values"] = (number, self._predicting(index, row))

    def _add_gated_values(self, head: ValueHead, gate: Gate, ends: np.ndarray) -> None:
        """Adds the values of a head whose labels each row weighs in its own way. Rows that share a
        state may have other weights there."""
        at, gate_at = [], []
        for index, (row, needs) in enumerate(self._requests):
            own = self._predicting(index, row) if needs.values else np.empty(0, dtype=np.int64)
            at.append(np.append(own, ends[index]))
            gate_at.append(
                np.searchsorted(self._places, self._places_of_rows[index][gate.place(row)])
            )
        lengths = [len(own) for own in at]
        states_at, row_of, gates = to_device(
            [np.concatenate(at), np.repeat(np.arange(len(at)), lengths), np.asarray(gate_at)],
            self._states.device,
        )
        weights = gate.weights(self._states[gates])
        number = self._add(head.values(self._states[states_at], weights[row_of]))
        stops = np.cumsum(lengths)
        for index, (_, needs) in enumerate(self._requests):
            last = int(stops[index]) - 1
            self._parts[index]["pooled"] = (number, last)
            if needs.values:
                self._parts[index]["values"] = (number, slice(last + 1 - lengths[index], last))

    def add_logits(self, head: LanguageHead) -> None:
        """Adds the language head, for the rows that want it."""
        at = {
            index: self._predicting(index, row)
            for index, (row, needs) in enumerate(self._requests)
            if needs.reads_logits
        }
        if not at:
            return
        LogitReadout(self._requests, self._states, at, add=self._add, parts=self._parts).read(head)

    def _predicting(self, index: int, row: Row) -> np.ndarray:
        """Which states [r + 1] predict the row's response tokens and the token after them."""
        places = self._places_of_rows[index][row.start - 1 : row.stop]
        return np.searchsorted(self._places, places)

    def _add(self, tensor: Tensor) -> int:
        """Notes a tensor to be sent. Returns its number."""
        self._tensors.append(tensor.to(torch.float32))
        return len(self._tensors) - 1


def read_places(
    requests: Sequence[RowRequest],
    places_of_rows: Sequence[np.ndarray],
    gate: Gate | None = None,
) -> np.ndarray:
    """The places whose hidden states a head and its gate read, ascending; the end of each row
    always."""
    parts = [places[-1:] for places in places_of_rows]
    for (row, needs), places in zip(requests, places_of_rows, strict=True):
        if gate is not None:
            parts.append(places[[gate.place(row)]])
        if needs.values or needs.reads_logits:
            parts.append(places[row.start - 1 : row.stop])
    return np.unique(np.concatenate(parts))


def _outputs(
    parts_of_rows: Sequence[Mapping[str, Any]], copy: Pending[list[np.ndarray]]
) -> list[Outputs]:
    """Waits for the copy of a pass's numbers, and makes the outputs of its rows from them."""
    arrays = copy.result()
    outputs = []
    for parts in parts_of_rows:
        fields = {name: _numbers(arrays, part) for name, part in parts.items()}
        fields |= {name: fields[name].astype(np.int64) for name in _INTEGERS if name in fields}
        outputs.append(Outputs(**fields))
    return outputs


def _numbers(arrays: list[np.ndarray], part: Any) -> Any:
    """The numbers of a part: an array, a float if it is one number, or a dict of them."""
    if isinstance(part, dict):
        return {key: _numbers(arrays, inner) for key, inner in part.items()}
    tensor, index = part
    numbers = arrays[tensor][index]
    return float(numbers) if np.ndim(numbers) == 0 else numbers
