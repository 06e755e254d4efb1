"""Lays the rows of a pass out in one packed sequence: a prompt that several rows share stands there
once.

Rows share a prompt if their ids before `start` are equal; no caller has to say so. This module
knows ids and positions, and no models. A model that runs over the packed sequence must let each
response attend to its prompt and to itself, and to nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from tokenreward.contract import Row

Range = tuple[int, int]  # start and stop of a run of tokens

# A prompt's range of the packed sequence, then the ranges of the responses that continue it, one
# after the other. Without responses, the first range is a whole row.
Group = tuple[Range, ...]

# Tokens of a prompt. Below it, the extra attention call that a shared prompt costs is dearer than
# reading the prompt again.
_SHORTEST_SHARED = 16


def shared_key(row: Row) -> bytes | None:
    """A key that is equal for rows that can share their prompt.

    It is None if the prompt is too short to be worth sharing.
    """
    if row.start < _SHORTEST_SHARED:
        return None
    return row.ids[: row.start].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """A packed sequence of n tokens.

    Attributes:
        ids: The tokens.
        positions: Each token's position in its own row.
        groups: The groups, in the order of their places.
        places: For each row, the places of its tokens in the packed sequence.
    """

    ids: Int64[np.ndarray, " n"]
    positions: Int64[np.ndarray, " n"]
    groups: tuple[Group, ...]
    places: tuple[Int64[np.ndarray, " _"], ...]


def sides(rows: Sequence[Row], switch: int | None) -> list[list[int]]:
    """Which rows may go through a call together: those of at most `switch` tokens, and the longer.

    Args:
        rows: The rows.
        switch: See `plain.rope_switch`; None if all rows may.

    Returns:
        The numbers of the rows of each side that has any.
    """
    parts: list[list[int]] = [[], []]
    for i, row in enumerate(rows):
        parts[switch is not None and len(row.ids) > switch].append(i)
    return [part for part in parts if part]


def pack(rows: Sequence[Row], *, share: bool = True) -> Packing:
    """Lays the rows out. Without `share`, every row stands for itself."""
    groups: list[Group] = []
    places: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(rows)
    pieces: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    end = 0

    def put(ids: np.ndarray, first_position: int) -> Range:
        nonlocal end
        pieces.append(ids)
        positions.append(np.arange(first_position, first_position + len(ids)))
        end += len(ids)
        return end - len(ids), end

    for members in _families(rows, share):
        first = rows[members[0]]
        num_shared = len(first.ids)  # a row that is alone is a prompt as a whole
        if len(members) > 1:
            num_shared = first.start
        prompt = put(first.ids[:num_shared], 0)
        responses = []
        for i in members:
            response = (end, end)
            if len(rows[i].ids) > num_shared:
                response = put(rows[i].ids[num_shared:], num_shared)
                responses.append(response)
            places[i] = np.concatenate([np.arange(*prompt), np.arange(*response)])
        groups.append((prompt, *responses))
    return Packing(np.concatenate(pieces), np.concatenate(positions), tuple(groups), tuple(places))


def behind_padding(packing: Packing, rows: Sequence[Row], padding: int) -> Packing:
    """The packing with positions as RoBERTa and its kin count them.

    The first position follows that of padding, which is also the id of the padding token. Such
    tokens have the position of padding wherever they stand, and are not counted.
    """
    positions = np.empty_like(packing.positions)
    for row, places in zip(rows, packing.places, strict=True):
        counts = row.ids != padding
        positions[places] = np.cumsum(counts) * counts + padding
    return replace(packing, positions=positions)


def lengthened(packing: Packing, num_tokens: int) -> Packing:
    """The packing with tokens that belong to no row at its end, so that it has `num_tokens`."""
    end = len(packing.ids)
    num_added = num_tokens - end
    if not num_added:
        return packing
    return replace(
        packing,
        ids=np.concatenate([packing.ids, np.zeros(num_added, packing.ids.dtype)]),
        positions=np.concatenate([packing.positions, np.arange(num_added)]),
        groups=(*packing.groups, ((end, num_tokens),)),
    )


def longest_row(group: Group) -> int:
    """Tokens of the longest row of a group: its prompt and a response."""
    prompt, *responses = ((stop - start) for start, stop in group)
    return prompt + max(responses, default=0)


def num_packed(rows: Sequence[Row], *, share: bool = True) -> int:
    """Tokens of the packed sequence, without laying it out."""
    families = _families(rows, share)
    num_saved = sum((len(members) - 1) * rows[members[0]].start for members in families)
    return sum(len(row.ids) for row in rows) - num_saved


def _families(rows: Sequence[Row], share: bool) -> list[list[int]]:
    """The numbers of rows that share a prompt, in order of first appearance.

    A row whose prompt no other row has is alone.
    """
    families: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        key: object = i
        if share:
            key = shared_key(row) or i
        families.setdefault(key, []).append(i)
    return list(families.values())
