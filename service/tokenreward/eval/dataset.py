"""A dataset: the rows of some files with their candidates, and what becomes of the answers.

It knows no file format and no statistics. Each kind of data is a function in a file of `kinds/`,
which says how a row is read and how answers are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.outcome import Judgement, ScorerOutcome
from tokenreward.eval.rows import DataRow, EvalError
from tokenreward.eval.statistics import Floats, latency_of
from tokenreward.eval.subject import Subject

Case = tuple[DataRow, range]
"""A row of the files, and the indices of its candidates."""


class Dataset:
    """Cases of one kind, one per row of the files.

    `candidates` and `cases` are in the order of the rows. `reason` says why the rows are of this
    kind, for the reader of the figures. `num_left_out` is the number of rows that say nothing of
    their responses' worth, and are no cases.

    Args:
        kind: The name of the kind.
        noun: What its cases are called, in the plural.
        rows: The rows.
        read: The candidates of one row; none if the row says nothing of their worth, as where two
            responses are a tie. It raises EvalError if the row is not what a row of this kind
            should be.
        judge: What answers, one per candidate of the dataset, say about the scorer that gave them.

    Raises:
        EvalError: As `read`.
    """

    def __init__(
        self,
        kind: str,
        noun: str,
        *,
        rows: Sequence[DataRow],
        read: Callable[[DataRow], list[Candidate]],
        judge: Callable[[Dataset, Sequence[CandidateAnswer]], Judgement],
    ) -> None:
        self.kind = kind
        self.noun = noun
        self.reason = ""
        self._judge = judge
        self.candidates: list[Candidate] = []
        self.cases: list[Case] = []
        self.num_left_out = 0
        for row in rows:
            first = len(self.candidates)
            self.candidates += read(row)
            if len(self.candidates) > first:
                self.cases.append((row, range(first, len(self.candidates))))
            else:
                self.num_left_out += 1
        if not self.cases:
            raise EvalError(f"{rows[0].where}: no row says which response is right or better")
        self.num_cases = len(self.cases)

    def complete_cases(self, answers: Sequence[CandidateAnswer]) -> list[Case]:
        """The cases in which no candidate has an error for an answer."""
        complete = []
        for row, indices in self.cases:
            if all(answers[index].error is None for index in indices):
                complete.append((row, indices))
        return complete

    def counts(self, complete: Sequence[Case]) -> dict[str, int]:
        """How many cases there are, how many of them are complete, and how many are not."""
        num_failed = self.num_cases - len(complete)
        return {self.noun: self.num_cases, "judged": len(complete), "failed": num_failed}

    def outcome(self, subject: Subject, answers: Sequence[CandidateAnswer]) -> ScorerOutcome:
        """The outcome for a scorer that gave these answers, one per candidate."""
        failures = []
        for candidate, answer in zip(self.candidates, answers, strict=True):
            if answer.error is not None:
                failures.append((candidate.where, answer.error.code, answer.fault))
        timings = [answer.timing for answer in answers if answer.timing is not None]
        latency = latency_of(timings)
        judgement = self._judge(self, answers)
        if self.num_left_out:
            note = f"{self.num_left_out} rows say nothing of which is right or better: left out"
            judgement = replace(judgement, notes=[*judgement.notes, note])
        return ScorerOutcome(subject, judgement, failures, len(answers), latency)

    def example_candidates(self, outcome: ScorerOutcome) -> dict[int, Candidate]:
        """The candidates of the outcome's examples, by index, with their units needed: the page
        shows them token by token."""
        indices = set()
        for examples in outcome.judgement.examples.values():
            for example in examples:
                indices |= set(example.responses.values())
        candidates = {}
        for index in sorted(indices):
            candidates[index] = replace(self.candidates[index], needs_units=True)
        return candidates


def scores_of(candidates: Iterable[int], answers: Sequence[CandidateAnswer]) -> Floats:
    """The scores [n] of these candidates, given by index.

    Raises:
        ValueError: One of them has none.
    """
    return np.array([answers[index].require_score() for index in candidates], dtype=np.float64)
