"""Reads the heads of a pass, row by row: computed on the device, and sent to the host in one copy.

It knows requests for rows and places of tokens, and no layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.value_head import ValueHead
from tokenreward.contract import Outputs, Reading, Row, RowRequest
from tokenreward.forward.language_head import LanguageHead
from tokenreward.forward.transfer import HostCopy, to_device, to_host


@dataclass(frozen=True, slots=True, eq=False)
class HiddenStates:
    """The last hidden states of a trunk, at some places of a packed sequence.

    Attributes:
        states: [m, h], in the model's dtype, on the device.
        places: [m], ascending: the place in the packed sequence of each state.
        places_of_rows: For each row, the places of its tokens in the packed sequence.
    """

    states: Tensor
    places: np.ndarray
    places_of_rows: Sequence[np.ndarray]

    def last(self, index: int) -> int:
        """Which state belongs to the last token of a row."""
        return int(np.searchsorted(self.places, self.places_of_rows[index][-1]))

    def predicting(self, index: int, row: Row) -> np.ndarray:
        """Which states [r + 1] predict the row's response tokens and the token after them."""
        return np.searchsorted(self.places, self.places_of_rows[index][row.start - 1 : row.stop])


# Numbers of one output: the number of a tensor that is sent, and an index into it.
_Part = tuple[int, Any]


class Readout:
    """The outputs of one pass, on their way to the host: the pass as a `Pending`.

    The `add_*` methods compute numbers on the device and note which of them belong to which row.
    `send` is called once, after them; then `result` gives the outputs. A readout holds no hidden
    states, because they would fill the device while the next pass runs.
    """

    def __init__(self, requests: Sequence[RowRequest]) -> None:
        self._requests = requests
        self._tensors: list[Tensor] = []
        self._copy = HostCopy([], None)
        # For each row, the parts of each field of `Outputs`; a field that is a dict has a dict.
        self._parts: list[dict[str, Any]] = [{} for _ in requests]

    def send(self) -> None:
        """Launches the copy of all numbers to the host."""
        self._copy = to_host(self._tensors)
        self._tensors = []  # so that the next pass can have their memory

    def result(self) -> list[Outputs]:
        """Waits for the copy, and for nothing that was launched after it.

        Returns:
            The outputs of each row, in order.
        """
        arrays = self._copy.result()
        outputs = []
        for parts in self._parts:
            fields = {name: _numbers(arrays, part) for name, part in parts.items()}
            outputs.append(Outputs(**fields))
        return outputs

    def add_attention(self, readings_of_rows: Mapping[int, Mapping[Reading, Tensor]]) -> None:
        """Adds readings of the last layer's attention, for the rows that have any."""
        for index, readings in readings_of_rows.items():
            self._parts[index]["attention"] = {
                name: (self._add(tensor), ...) for name, tensor in readings.items()
            }

    def add_values(self, head: ValueHead, hidden: HiddenStates) -> None:
        """Adds the value head, if a row wants it. It costs little, so every state is read."""
        if not any(needs.values or needs.pooled for _, needs in self._requests):
            return
        number = self._add(head.values(hidden.states))
        for index, (row, needs) in enumerate(self._requests):
            self._parts[index]["pooled"] = (number, hidden.last(index))
            if needs.values:
                self._parts[index]["values"] = (number, hidden.predicting(index, row))

    def add_logits(self, head: LanguageHead, hidden: HiddenStates) -> None:
        """Adds the language head, for the rows that want it."""
        at = {
            index: hidden.predicting(index, row)
            for index, (row, needs) in enumerate(self._requests)
            if needs.reads_logits
        }
        if not at:
            return
        # Rows that want the same are read together: the odd temperature of one request must not be
        # computed for everybody. Labels alone are dot products, and need no pass over the
        # vocabulary.
        groups: dict[tuple[frozenset[float], frozenset[float]], list[int]] = {}
        for index in at:
            needs = self._requests[index].needs
            if needs.temperatures:
                groups.setdefault((needs.temperatures, needs.entropies), []).append(index)
        # The last token of a shared prompt predicts the first token of many rows. It meets the
        # vocabulary once.
        unique = []
        for members in groups.values():
            states = np.concatenate([at[index] for index in members])
            unique.append(np.unique(states, return_inverse=True))
        dots_at, dots_tokens, *states_at = to_device(
            [*self._note_dots(at), *(states for states, _ in unique)], hidden.states.device
        )
        self._add(head.token_logits(hidden.states, dots_at, dots_tokens))
        for (kind, members), (states, which), on_device in zip(
            groups.items(), unique, states_at, strict=True
        ):
            temperatures, entropies = sorted(kind[0]), sorted(kind[1])
            is_every_state = len(states) == len(hidden.places)
            lse, entropy = head.normalisers(
                hidden.states, None if is_every_state else on_device, temperatures, entropies
            )
            lse_number, entropy_number = self._add(lse), self._add(entropy)
            ends = np.cumsum([len(at[index]) for index in members])[:-1]
            for index, own in zip(members, np.split(which, ends), strict=True):
                self._parts[index] |= {
                    "lse": {t: (lse_number, (k, own)) for k, t in enumerate(temperatures)},
                    "entropy": {t: (entropy_number, (k, own)) for k, t in enumerate(entropies)},
                }

    def _note_dots(self, at: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Notes where the raw logits of response tokens and labels are in the next tensor.

        Args:
            at: For each row that wants logits, the states [r + 1] that predict its tokens.

        Returns:
            The state and the token of each logit of that tensor.
        """
        number, end = len(self._tensors), 0
        all_states: list[np.ndarray] = []
        all_tokens: list[np.ndarray] = []

        def note(states: np.ndarray, tokens: np.ndarray) -> _Part:
            nonlocal end
            all_states.append(states)
            all_tokens.append(tokens)
            end += len(states)
            return number, slice(end - len(states), end)

        for index, states in at.items():
            (row, needs), parts = self._requests[index], self._parts[index]
            # The last position predicts the token after the response, which nobody chose.
            parts["chosen"] = note(states[:-1], row.ids[row.start : row.stop])
            parts["logits"] = {
                label: note(states, np.full(len(states), label)) for label in sorted(needs.labels)
            }
        return np.concatenate(all_states), np.concatenate(all_tokens)

    def _add(self, tensor: Tensor) -> int:
        """Notes a tensor to be sent. Returns its number."""
        self._tensors.append(tensor.to(torch.float32))
        return len(self._tensors) - 1


def _numbers(arrays: list[np.ndarray], part: Any) -> Any:
    """The numbers of a part: an array, a float if it is one number, or a dict of them."""
    if isinstance(part, dict):
        return {key: _numbers(arrays, inner) for key, inner in part.items()}
    tensor, index = part
    numbers = arrays[tensor][index]
    return float(numbers) if np.ndim(numbers) == 0 else numbers
