"""Reads the language head at the states of a pass: raw logits, logsumexps, entropies, rankings.

Rows that want the same are read together. What goes to the device for all of them goes in one copy.
It knows rows and places of their states, and does not know how the states came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from tokenreward.contract import Needs, RowRequest
from tokenreward.forward.language_head import LanguageHead, Ranking
from tokenreward.forward.transfer import to_device

_Key = TypeVar("_Key", bound=tuple[Any, ...])

# Arrays that go to the device, and what is done with them there.
_Work = tuple[list[np.ndarray], Callable[..., None]]
# Temperatures, entropies and `top_k`: rows that have them in common meet the vocabulary together.
# The odd temperature of one request must not be computed for everybody.
_Kind = tuple[frozenset[float], frozenset[float], int | None]

_RANKED_FIELDS = ("chosen", "top_logits", "top_ids", "ranks")


class LogitReadout:
    """Notes the numbers of some rows' logits as parts of their outputs.

    Args:
        requests: The rows of the pass, and what is wanted of them.
        states: Hidden states [m, h] on the device.
        at: For each row that wants logits, the states [r + 1] that predict its tokens.
        add: Takes a tensor to be sent to the host, and gives its number.
        parts: Gets, for each row, the parts of each field of `Outputs`: a tensor's number, and an
            index into it.
    """

    def __init__(
        self,
        requests: Sequence[RowRequest],
        states: Tensor,
        at: Mapping[int, np.ndarray],
        *,
        add: Callable[[Tensor], int],
        parts: Sequence[dict[str, Any]],
    ) -> None:
        self._requests, self._states, self._at = requests, states, at
        self._add, self._parts = add, parts

    def read(self, head: LanguageHead) -> None:
        """Computes all that the rows want of the head, on the device."""
        works = [self._chosen(head)]
        works += [self._labels(head, *group) for group in self._groups(lambda n: (n.labels,))]
        works += [
            self._normalisers(head, *group)
            for group in self._groups(lambda n: (n.temperatures, n.entropies, n.top_k))
        ]
        on_device = iter(
            to_device([array for arrays, _ in works for array in arrays], self._states.device)
        )
        for arrays, compute in works:
            compute(*(next(on_device) for _ in arrays))

    def _chosen(self, head: LanguageHead) -> _Work:
        """The raw logits of the response tokens."""
        # The last position predicts the token after the response, which nobody chose.
        states = [of_row[:-1] for of_row in self._at.values()]
        tokens = [self._tokens(index) for index in self._at]
        rows = dict(zip(self._at, _slices(states), strict=True))

        def compute(at: Tensor, targets: Tensor) -> None:
            number = self._add(head.token_logits(self._states, at, targets))
            for index, places in rows.items():
                self._parts[index]["chosen"] = (number, places)

        return [np.concatenate(states), np.concatenate(tokens)], compute

    def _labels(self, head: LanguageHead, kind: tuple[frozenset[int]], members: list[int]) -> _Work:
        """The raw logits of labels. Alone they need no pass over the vocabulary."""
        states = [self._at[index] for index in members]
        ordered = sorted(kind[0])

        def compute(at: Tensor, tokens: Tensor) -> None:
            number = self._add(head.label_logits(self._states, at, tokens))
            for index, rows in zip(members, _slices(states), strict=True):
                self._parts[index]["logits"] = {
                    label: (number, (rows, k)) for k, label in enumerate(ordered)
                }

        return [np.concatenate(states), np.array(ordered, dtype=np.int64)], compute

    def _normalisers(self, head: LanguageHead, kind: _Kind, members: list[int]) -> _Work:
        """Logsumexps and entropies, of one pass over the vocabulary."""
        if kind[2] is not None:
            return self._ranked(head, kind, members)
        states = [self._at[index] for index in members]
        # The last token of a shared prompt predicts the first token of many rows. It meets the
        # vocabulary once.
        unique, which = np.unique(np.concatenate(states), return_inverse=True)
        places = [which[rows] for rows in _slices(states)]
        is_every_state = len(unique) == len(self._states)

        def compute(at: Tensor) -> None:
            self._normalise(head, kind, None if is_every_state else at, members, places)

        return [unique], compute

    def _ranked(self, head: LanguageHead, kind: _Kind, members: list[int]) -> _Work:
        """The same with the largest logits and the ranks of the response tokens.

        A state comes as often as it predicts a token: each of them has a rank of its own there.
        """
        states = [self._at[index] for index in members]
        # Nobody chose the token after a response, and its rank is not looked at.
        tokens = [np.append(self._tokens(index), 0) for index in members]
        slices = _slices(states)

        def compute(at: Tensor, targets: Tensor) -> None:
            own = head.token_logits(self._states, at, targets)
            ranking = Ranking(targets, own, kind[2] or 0)
            self._normalise(head, kind, at, members, slices, ranking=ranking)
            # A token has one logit, to the bit, whether it is read as its own or among the largest.
            numbers = [self._add(tensor) for tensor in (own, *ranking.result())]
            for index, rows in zip(members, slices, strict=True):
                places = slice(rows.start, rows.stop - 1)
                fields = zip(_RANKED_FIELDS, numbers, strict=True)
                self._parts[index] |= {name: (number, places) for name, number in fields}

        return [np.concatenate(states), np.concatenate(tokens)], compute

    def _normalise(
        self,
        head: LanguageHead,
        kind: _Kind,
        at: Tensor | None,
        members: Sequence[int],
        places: Sequence[Any],
        *,
        ranking: Ranking | None = None,
    ) -> None:
        """Runs the pass over the vocabulary for some states, and notes where each row's numbers
        are.

        Args:
            head: The head.
            kind: What is computed.
            at: The states; None for all of them.
            members: The rows.
            places: For each row, which of these states are its own.
            ranking: Is shown the tiles.
        """
        temperatures, entropies = sorted(kind[0]), sorted(kind[1])
        lse, entropy = head.normalisers(self._states, at, temperatures, entropies, ranking=ranking)
        lse_number, entropy_number = self._add(lse), self._add(entropy)
        for index, own in zip(members, places, strict=True):
            self._parts[index] |= {
                "lse": {t: (lse_number, (k, own)) for k, t in enumerate(temperatures)},
                "entropy": {t: (entropy_number, (k, own)) for k, t in enumerate(entropies)},
            }

    def _tokens(self, index: int) -> np.ndarray:
        """The response tokens [r] of a row."""
        row = self._requests[index].row
        return row.ids[row.start : row.stop]

    def _groups(self, key: Callable[[Needs], _Key]) -> list[tuple[_Key, list[int]]]:
        """The rows that have a key in common, for each key. Rows whose key begins with nothing are
        left out: they want no labels, or no temperature."""
        groups: dict[_Key, list[int]] = {}
        for index in self._at:
            own = key(self._requests[index].needs)
            if own[0]:
                groups.setdefault(own, []).append(index)
        return list(groups.items())


def _slices(parts: Sequence[np.ndarray]) -> list[slice]:
    """Where parts lie that follow one another."""
    ends = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return [slice(*pair) for pair in pairwise(ends)]
