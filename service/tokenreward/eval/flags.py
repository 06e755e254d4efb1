"""Which characters or units of a response are known to be wrong, and how well low rewards point at
them.

A unit (a token of the scorer's, or a span of the file's) is flagged if any of its characters is.
Units without characters of their own, as end-of-turn, are left out. The score is minus the reward:
low reward means flagged. The micro area pools the units of all responses; the mean is over
responses that have units of both kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokenreward.eval.answer import Units
from tokenreward.eval.auc import Curve, pooled_auc, roc_auc, roc_curve
from tokenreward.eval.figure import Figure, Floats, mean
from tokenreward.eval.rows import Row, kind_of

Bools = npt.NDArray[np.bool_]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Flags:
    """What is known to be wrong: characters [length of the response], or else units [spans of the
    item]."""

    characters: Bools
    units: Bools | None = None

    def of(self, units: Units) -> tuple[Bools, Bools]:
        """For each unit: whether it is flagged, and whether it counts at all."""
        if self.units is not None:
            return self.units, np.ones(len(self.units), dtype=np.bool_)
        num_before = np.concatenate([[0], np.cumsum(self.characters)])
        starts, ends = units.spans[:, 0], units.spans[:, 1]
        return num_before[ends] > num_before[starts], ends > starts


@dataclass(frozen=True, slots=True, eq=False)
class TokenFigures:
    """Over flagged responses. `areas` has each response's own, None where it has units of one kind
    only."""

    micro: Figure | None
    mean: Figure | None
    areas: list[float | None]
    curve: Curve | None
    flagged: Floats
    others: Floats


def token_figures(responses: Sequence[tuple[Flags, Units]]) -> TokenFigures:
    """How well low rewards point at what is flagged."""
    labels, scores, owners, areas = [], [], [], []
    for index, (flags, units) in enumerate(responses):
        flagged, counts = flags.of(units)
        minus = -units.rewards[counts].astype(np.float64)
        areas.append(roc_auc(flagged[counts], minus))
        labels.append(flagged[counts])
        scores.append(minus)
        owners.append(np.full(len(minus), index))
    truth = np.concatenate(labels) if labels else np.empty(0, dtype=np.bool_)
    score = np.concatenate(scores) if scores else np.empty(0)
    owner = np.concatenate(owners).astype(np.int64) if owners else np.empty(0, dtype=np.int64)
    return TokenFigures(
        micro=pooled_auc(truth, score, owner),
        mean=mean([area for area in areas if area is not None]),
        areas=areas,
        curve=roc_curve(truth, score),
        flagged=-score[truth],
        others=-score[~truth],
    )


def ranges_flagged(row: Row, field: str, length: int) -> Flags:
    """From half-open character ranges, `[[start, end], ...]`. Raises DataError."""
    value = row.get(field)
    if not isinstance(value, list):
        raise row.wrong(field, f"must be a list of [start, end] ranges, got {kind_of(value)}")
    characters = np.zeros(length, dtype=np.bool_)
    for index, entry in enumerate(value):
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not all(type(end) is int for end in entry)
        ):
            raise row.wrong(f"{field}[{index}]", f"must be [start, end], got {kind_of(entry)}")
        start, end = entry
        if not 0 <= start < end <= length:
            message = (
                f"is [{start}, {end}], but the response has {length} characters (Unicode code "
                "points)"
            )
            raise row.wrong(f"{field}[{index}]", message)
        characters[start:end] = True
    return Flags(characters)
