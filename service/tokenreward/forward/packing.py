"""Rows of a batch laid out in one packed sequence, a prompt that several rows share only once.

Rows share a prompt if their ids before `start` are equal; nobody has to say so. It knows ids and
positions, and nothing of models: what reads the layout must let each response attend to its prompt
and to itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from tokenreward.contract import Row

Range = tuple[int, int]

# Below it, the extra attention call that a shared prompt costs is dearer than reading the prompt
# again.
_SHORTEST_SHARED = 16


def shared_key(row: Row) -> bytes | None:
    """Equal for rows that can share their prompt; None if it is too short to be worth it."""
    return row.ids[: row.start].tobytes() if row.start >= _SHORTEST_SHARED else None


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and the responses that continue it, as token ranges of the packed sequence; the
    responses follow one another. Without responses the prompt is a whole row."""

    prompt: Range
    responses: tuple[Range, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest row of the group."""
        longest_response = max((stop - start for start, stop in self.responses), default=0)
        return self.prompt[1] - self.prompt[0] + longest_response


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """`ids`, `positions` [n] of the packed sequence, its `groups` in order; `places[i]`: where row
    i's tokens are."""

    ids: Int64[np.ndarray, " n"]
    positions: Int64[np.ndarray, " n"]
    groups: tuple[Group, ...]
    places: tuple[Int64[np.ndarray, " _"], ...]


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
        num_shared = rows[members[0]].start if len(members) > 1 else len(rows[members[0]].ids)
        prompt = put(rows[members[0]].ids[:num_shared], 0)
        responses = []
        for i in members:
            start, stop = (
                put(rows[i].ids[num_shared:], num_shared)
                if len(rows[i].ids) > num_shared
                else (end, end)
            )
            places[i] = np.concatenate([np.arange(*prompt), np.arange(start, stop)])
            if stop > start:
                responses.append((start, stop))
        groups.append(Group(prompt, tuple(responses)))
    return Packing(np.concatenate(pieces), np.concatenate(positions), tuple(groups), tuple(places))


def num_packed(rows: Sequence[Row], *, share: bool = True) -> int:
    """Tokens of the packed sequence."""
    families = _families(rows, share)
    saved = sum((len(members) - 1) * rows[members[0]].start for members in families)
    return sum(len(row.ids) for row in rows) - saved


def _families(rows: Sequence[Row], share: bool) -> list[list[int]]:
    """Rows by shared prompt, in order of first appearance; a row whose prompt nobody shares is
    alone."""
    found: dict[object, list[int]] = {}
    for i, row in enumerate(rows):
        key = shared_key(row) if share else None
        found.setdefault(i if key is None else key, []).append(i)
    return list(found.values())
