"""Judges how well low rewards point at the characters of a response that are known to be wrong.

A unit (one of the scorer's tokens, or one of the file's spans) is flagged if any of its characters
is. Units without characters of their own, as end-of-turn, are left out. The score of a unit is
minus its reward: a low reward means flagged. The micro area pools the units of all responses; the
mean is over responses that have flagged units and others. It knows no kind of data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.outcome import Example, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import Bools, Ints, mean, pooled_auc, roc_auc, roc_curve


def judge_flags(
    responses: Sequence[tuple[str, int]],
    candidates: Sequence[Candidate],
    answers: Sequence[CandidateAnswer],
) -> Judgement:
    """Judge the rewards of responses that have flags.

    Args:
        responses: For each response, what messages call its row, and the index of its candidate. A
            response whose answer is an error counts nowhere.
        candidates: All candidates of the dataset.
        answers: The answers to all of them.

    Returns:
        The mean and the micro area; the rewards of units that are flagged and of those that are
        not; the responses with the smallest areas. Its only count is the number of responses that
        have no area because all of their units are of one class.

    Raises:
        ValueError: An answer has no units, or a candidate no flags.
    """
    responses = [(where, index) for where, index in responses if answers[index].error is None]
    labels, scores, owners = [np.empty(0, np.bool_)], [np.empty(0)], [np.empty(0, np.int64)]
    areas, examples = [], []
    for number, (where, index) in enumerate(responses):
        rewards, spans = answers[index].require_units()
        flagged, counts = unit_flags(candidates[index], spans)
        minus_rewards = -rewards[counts].astype(np.float64)
        labels.append(flagged[counts])
        scores.append(minus_rewards)
        owners.append(np.full(len(minus_rewards), number))
        area = roc_auc(flagged[counts], minus_rewards)
        if area is not None:
            areas.append(area)
            texts = {"what is underlined is flagged": index}
            examples.append(Example(where, f"token AUC {area:.3f}", -area, texts))
    label, score = np.concatenate(labels), np.concatenate(scores)
    micro_area = pooled_auc(label, score, np.concatenate(owners))
    return Judgement(
        columns={
            "token_auc": ("token AUC (mean)", mean(areas)),
            "token_auc_micro": ("token AUC (micro)", micro_area),
        },
        counts={"of one kind only": len(responses) - len(areas)},
        classes={"not flagged": -score[~label], "flagged": -score[label]},
        curve=roc_curve(label, score),
        curve_title="flagged tokens found by low reward",
        examples={"flagged tokens": worst(examples)},
    )


def unit_flags(candidate: Candidate, spans: Ints) -> tuple[Bools, Bools]:
    """Which units of a response are flagged.

    Args:
        candidate: The response, with flags.
        spans: The half-open character range of each unit of its answer, [n, 2].

    Returns:
        Whether each unit is flagged, [n], and whether it counts at all, [n].

    Raises:
        ValueError: The candidate has no flags.
    """
    flags = candidate.require_flags()
    if "spans" in candidate.item:
        # The units are the file's own spans: each has its flag, and each counts.
        return flags, np.ones(len(flags), dtype=np.bool_)
    num_before = np.concatenate([[0], np.cumsum(flags)])
    starts, ends = spans[:, 0], spans[:, 1]
    return num_before[ends] > num_before[starts], ends > starts


def range_flags(row: DataRow, field: str, num_characters: int) -> Bools:
    """The flag of each character, from a field with half-open ranges `[[start, end], ...]`.

    Raises EvalError if the field is anything else or a range is not inside the response.
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
