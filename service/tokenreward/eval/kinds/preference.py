"""Kind `preference`: pairs of a chosen and a rejected response, as RewardBench has them.

A row is {prompt, chosen, rejected}, with an optional `subset`. A pair is right if the chosen
response has the strictly higher score; equal scores are no win, and are counted apart as ties.
Micro is over pairs, macro over subsets.

`rejected_flagged`, optional: half-open character ranges of the rejected response that are known to
be wrong. Rows that have it are also judged token by token (see `flags`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import PromptAs, candidate, prompt_of
from tokenreward.eval.dataset import Dataset, have_answers
from tokenreward.eval.kinds.flags import CURVE_TITLE, FlaggedResponse, judge_flags, range_flags
from tokenreward.eval.outcome import Column, Example, ExampleResponse, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import Bools, Estimate, RocCurve, mean_of_shares, share

NO_SUBSET = "no subset"


@dataclass(frozen=True, slots=True, eq=False)
class PreferencePair:
    """One row.

    `chosen` and `rejected` are indices of candidates; `flags` has a flag per character of the
    rejected response, if the row has flags.
    """

    where: str
    subset: str | None
    chosen: int
    rejected: int
    flags: Bools | None


class Preference(Dataset):
    """Pairs, with or without flagged characters."""

    kind = "preference"
    noun = "pairs"

    def __init__(self, rows: Sequence[DataRow], prompt_as: PromptAs) -> None:
        super().__init__()
        self._pairs = [self._pair(row, prompt_as) for row in rows]
        self.num_cases = len(self._pairs)

    def judge(self, answers: Sequence[CandidateAnswer]) -> Judgement:
        """Accuracy per subset, micro and macro; the token areas of flagged responses."""
        complete = [p for p in self._pairs if have_answers((p.chosen, p.rejected), answers)]
        chosen = np.array([answers[pair.chosen].require_score() for pair in complete])
        rejected = np.array([answers[pair.rejected].require_score() for pair in complete])
        wins = chosen > rejected
        counts = {
            "pairs": self.num_cases,
            "judged": len(complete),
            "failed": self.num_cases - len(complete),
            "wrong": int((chosen < rejected).sum()),
            "ties": int((chosen == rejected).sum()),
        }
        columns = [Column("accuracy", "pair accuracy", share(float(wins.sum()), len(complete)))]
        groups = self._subset_accuracies(complete, wins)
        if groups:
            macro = mean_of_shares(list(groups.values()))
            columns.append(Column("accuracy_macro", "macro over subsets", macro))
        examples = {"rejected against chosen": worst([_example(p, answers) for p in complete])}
        curve: RocCurve | None = None
        if any(pair.flags is not None for pair in self._pairs):
            tokens = judge_flags(self._flagged_responses(answers), answers)
            columns += tokens.columns
            examples["flagged tokens"] = tokens.examples
            curve = tokens.curve
        return Judgement(
            columns,
            counts,
            groups=groups,
            groups_title="pair accuracy by subset",
            classes={"chosen": chosen, "rejected": rejected},
            curve=curve,
            curve_title=CURVE_TITLE,
            examples=examples,
        )

    def _pair(self, row: DataRow, prompt_as: PromptAs) -> PreferencePair:
        prompt = prompt_of(row, "prompt", prompt_as)
        chosen, rejected = row.text("chosen"), row.text("rejected")
        flags = None
        if "rejected_flagged" in row.fields:
            flags = range_flags(row, "rejected_flagged", len(rejected))
        subset = row.text("subset") if row.fields.get("subset") is not None else None
        first = candidate(row, prompt, chosen, field="chosen")
        second = candidate(row, prompt, rejected, field="rejected", needs_units=flags is not None)
        return PreferencePair(row.where, subset, self.add(first), self.add(second), flags)

    def _flagged_responses(self, answers: Sequence[CandidateAnswer]) -> list[FlaggedResponse]:
        """The flagged rejected responses that have answers. Their tokens count without an answer
        for the chosen response."""
        return [
            FlaggedResponse(pair.where, pair.rejected, pair.flags)
            for pair in self._pairs
            if pair.flags is not None and have_answers([pair.rejected], answers)
        ]

    def _subset_accuracies(
        self, complete: Sequence[PreferencePair], wins: Bools
    ) -> dict[str, Estimate | None]:
        """Accuracy per subset, in the order of the file; empty if no row names a subset."""
        names = list(dict.fromkeys(pair.subset for pair in self._pairs))
        if names == [None]:
            return {}
        accuracies = {}
        for name in names:
            is_here = np.array([pair.subset == name for pair in complete], dtype=np.bool_)
            accuracies[name or NO_SUBSET] = share(int(wins[is_here].sum()), int(is_here.sum()))
        return accuracies


def _example(pair: PreferencePair, answers: Sequence[CandidateAnswer]) -> Example:
    chosen = answers[pair.chosen].require_score()
    rejected = answers[pair.rejected].require_score()
    responses = (
        ExampleResponse(f"chosen, score {chosen:+.4g}", pair.chosen),
        ExampleResponse(f"rejected, score {rejected:+.4g}", pair.rejected, pair.flags),
    )
    margin = rejected - chosen
    return Example(pair.where, f"rejected minus chosen {margin:+.4g}", margin, responses)
