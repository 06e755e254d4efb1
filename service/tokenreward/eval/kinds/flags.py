"""Judges how well low rewards point at the characters of a response that are known to be wrong.

A unit (one of the scorer's tokens, or one of the file's spans) is flagged if any of its characters
is. Units without characters of their own, as end-of-turn, are left out. The score of a unit is
minus its reward: a low reward means flagged. The micro area pools the units of all responses; the
mean is over responses that have flagged units and others. It knows no kind of data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenreward.eval.answer import CandidateAnswer, UnitRewards
from tokenreward.eval.outcome import Column, Example, ExampleResponse, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import (
    Bools,
    Floats,
    RocCurve,
    mean,
    pooled_auc,
    roc_auc,
    roc_curve,
)

CURVE_TITLE = "flagged tokens found by low reward"


@dataclass(frozen=True, slots=True, eq=False)
class FlaggedResponse:
    """A response with what is known to be wrong in it.

    `where` names its row, `candidate` is the index of its candidate. `characters` has a flag per
    character; `units` a flag per span of the item, where the item has spans of its own.
    """

    where: str
    candidate: int
    characters: Bools
    units: Bools | None = None

    def unit_flags(self, units: UnitRewards) -> tuple[Bools, Bools]:
        """For each unit of the answer [n]: whether it is flagged, and whether it counts at all."""
        if self.units is not None:
            return self.units, np.ones(len(self.units), dtype=np.bool_)
        num_before = np.concatenate([[0], np.cumsum(self.characters)])
        starts, ends = units.spans[:, 0], units.spans[:, 1]
        return num_before[ends] > num_before[starts], ends > starts


@dataclass(frozen=True, slots=True, eq=False)
class TokenJudgement:
    """What the rewards of flagged responses are worth.

    `columns` are the mean and the micro area. `areas` has each response's own area, None where all
    of its units are of one class. `flagged` and `others` are the rewards of the units that are
    flagged and of those that are not. `examples` are the responses with the smallest areas.
    """

    columns: list[Column]
    areas: list[float | None]
    curve: RocCurve | None
    flagged: Floats
    others: Floats
    examples: list[Example]


def judge_flags(
    responses: Sequence[FlaggedResponse], answers: Sequence[CandidateAnswer]
) -> TokenJudgement:
    """Judge the rewards of flagged responses.

    Args:
        responses: Flagged responses, each answered with units.
        answers: The answers to all candidates of the dataset.
    """
    labels, scores, owners = [np.empty(0, np.bool_)], [np.empty(0)], [np.empty(0, np.int64)]
    areas, examples = [], []
    for index, response in enumerate(responses):
        units = answers[response.candidate].units
        if units is None:
            raise ValueError(f"{response.where}: this answer has no units")
        flagged, counts = response.unit_flags(units)
        minus_rewards = -units.rewards[counts].astype(np.float64)
        area = roc_auc(flagged[counts], minus_rewards)
        areas.append(area)
        labels.append(flagged[counts])
        scores.append(minus_rewards)
        owners.append(np.full(len(minus_rewards), index))
        if area is not None:
            text = ExampleResponse(
                "what is underlined is flagged", response.candidate, response.characters
            )
            examples.append(Example(response.where, f"token AUC {area:.3f}", -area, (text,)))
    label, score = np.concatenate(labels), np.concatenate(scores)
    mean_area = mean([area for area in areas if area is not None])
    micro_area = pooled_auc(label, score, np.concatenate(owners))
    return TokenJudgement(
        columns=[
            Column("token_auc", "token AUC (mean)", mean_area),
            Column("token_auc_micro", "token AUC (micro)", micro_area),
        ],
        areas=areas,
        curve=roc_curve(label, score),
        flagged=-score[label],
        others=-score[~label],
        examples=worst(examples),
    )


def range_flags(row: DataRow, field: str, num_characters: int) -> Bools:
    """The flag of each character, from a field with half-open ranges `[[start, end], ...]`.

    Raises DataError if the field is anything else or a range is not inside the response.
    """
    flags = np.zeros(num_characters, dtype=np.bool_)
    for index, (start, end) in enumerate(row.ranges(field, noun="ranges", allow_empty=True)):
        if not 0 <= start < end <= num_characters:
            message = (
                f"is [{start}, {end}], but the response has {num_characters} characters (Unicode "
                "code points)"
            )
            raise row.wrong(f"{field}[{index}]", message)
        flags[start:end] = True
    return flags
