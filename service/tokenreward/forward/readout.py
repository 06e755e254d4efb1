"""What the heads say of a pass's hidden states, row by row: asked on the device, and sent to the
host in one copy.

It knows rows, needs and places, and no layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreward.checkpoints.value_head import ValueHead
from tokenreward.contract import Needs, Reading, Row
from tokenreward.forward.language_head import LanguageHead
from tokenreward.forward.transfer import to_device, to_host

Work = Sequence[tuple[Row, Needs]]
Then = Callable[[list[np.ndarray]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """The trunk's last hidden states [m, h], the places [m], ascending, of the packed sequence that
    they are of, and of each row the places of its tokens there."""

    states: Tensor
    places: np.ndarray
    of_rows: Sequence[np.ndarray]

    def at(self, places: np.ndarray) -> np.ndarray:
        """Where the states of these places are."""
        return np.searchsorted(self.places, places)

    def predicting(self, index: int, row: Row) -> np.ndarray:
        """Where the states are that predict the row's wanted tokens, and the one after them."""
        return self.at(self.of_rows[index][row.start - 1 : row.stop])


@dataclass(slots=True, eq=False)
class Readout:
    """Outputs of the rows of a pass: ask, then `send`, once. It keeps no states, which would fill
    the device."""

    work: Work
    _outputs: list[dict[str, Any]] = field(init=False)
    _tensors: list[Tensor] = field(default_factory=list)
    _then: list[tuple[int, Then]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._outputs = [{} for _ in self.work]

    def send(self) -> Callable[[], list[dict[str, Any]]]:
        """Sends all that was asked to the host. Calling what is returned waits for it, not for what
        is asked of the device later, and gives each row's outputs."""
        arriving = to_host(self._tensors)
        self._tensors = []  # the device may have the memory for the next pass
        return partial(self._arrived, arriving)

    def _arrived(self, arriving: Callable[[], list[np.ndarray]]) -> list[dict[str, Any]]:
        left = iter(arriving())
        for count, then in self._then:
            then(list(islice(left, count)))
        return self._outputs

    def ask_values(self, head: ValueHead, hidden: Hidden) -> None:
        """The value head. It costs little, so every row has it."""
        inside = [
            hidden.predicting(i, row) if needs.values else None
            for i, (row, needs) in enumerate(self.work)
        ]
        ends = [int(hidden.at(places[-1:])[0]) for places in hidden.of_rows]

        def then(arrays: list[np.ndarray]) -> None:
            (values,) = arrays
            for found, of, end in zip(self._outputs, inside, ends, strict=True):
                found |= {
                    "values": None if of is None else values[of],
                    "pooled": float(values[end]),
                }

        self._add([head.values(hidden.states)], then)

    def ask_attention(self, found: dict[int, dict[Reading, Tensor]]) -> None:
        """Readings of the last layer's attention."""
        for i, readings in found.items():

            def then(
                arrays: list[np.ndarray], i: int = i, names: tuple[Reading, ...] = tuple(readings)
            ) -> None:
                self._outputs[i]["attention"] = dict(zip(names, arrays, strict=True))

            self._add(list(readings.values()), then)

    def ask_logits(self, head: LanguageHead, hidden: Hidden) -> None:
        """The language head, for the rows that want it."""
        # Rows of a kind together: a request's odd temperature must not be computed for everybody.
        kinds: dict[tuple[frozenset[float], frozenset[float]], list[int]] = {}
        for i, (_, needs) in enumerate(self.work):
            if needs.temperatures:
                kinds.setdefault((needs.temperatures, needs.entropies), []).append(i)
        for (temperatures, entropies), members in kinds.items():
            self._ask_kind(head, hidden, members, (sorted(temperatures), sorted(entropies)))

    def _ask_kind(
        self,
        head: LanguageHead,
        hidden: Hidden,
        members: list[int],
        asked: tuple[list[float], list[float]],
    ) -> None:
        """Of rows that want the same temperatures and entropies."""
        rows = [self.work[i][0] for i in members]
        # Position t predicts token t + 1; the position after the last token is wanted, too (its V),
        # without a target. The last token of a shared prompt predicts many first tokens and meets
        # the vocabulary once.
        at = [hidden.predicting(i, row) for i, row in zip(members, rows, strict=True)]
        unique, inverse = np.unique(np.concatenate(at), return_inverse=True)
        labels = [sorted(row.labels) for row in rows]
        targets = [np.append(row.ids[row.start : row.stop], 0) for row in rows]
        label_at = [np.tile(places, len(of)) for places, of in zip(at, labels, strict=True)]
        label_targets = [
            np.repeat(np.array(of, np.int64), len(places))
            for places, of in zip(at, labels, strict=True)
        ]
        all_at, all_targets, rows_of = to_device(
            [np.concatenate([*at, *label_at]), np.concatenate([*targets, *label_targets]), unique],
            hidden.states.device,
        )
        everything = len(unique) == len(hidden.places)
        chosen = head.chosen(hidden.states, all_at, all_targets)
        lse, entropy = head.normalisers(hidden.states, None if everything else rows_of, *asked)

        def then(arrays: list[np.ndarray]) -> None:
            cuts = np.cumsum([len(part) for part in (*at, *label_at)])[:-1]
            pieces = np.split(arrays[0], cuts)
            places = np.split(inverse, cuts[: len(at) - 1])
            for k, i in enumerate(members):
                self._outputs[i] |= {
                    "chosen": pieces[k][:-1],
                    "lse": {t: arrays[1][n, places[k]] for n, t in enumerate(asked[0])},
                    "entropy": {t: arrays[2][n, places[k]] for n, t in enumerate(asked[1])},
                    "logits": dict(
                        zip(
                            labels[k],
                            pieces[len(at) + k].reshape(len(labels[k]), len(at[k])),
                            strict=True,
                        )
                    ),
                }

        self._add([chosen, lse, entropy], then)

    def _add(self, tensors: list[Tensor], then: Then) -> None:
        self._tensors += [tensor.to(torch.float32) for tensor in tensors]
        self._then.append((len(tensors), then))
