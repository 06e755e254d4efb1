"""What every kind of data is: candidates to be scored, and a judgement of their answers.

It knows no file format and no statistics; each kind has a file of its own in `kinds/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.outcome import Failure, Judgement, ScorerOutcome
from tokenreward.eval.statistics import latency_of
from tokenreward.eval.subject import Subject


def have_answers(candidates: Iterable[int], answers: Sequence[CandidateAnswer]) -> bool:
    """Whether none of these candidates, given by index, has an error for an answer."""
    return all(answers[index].error is None for index in candidates)


class Dataset(ABC):
    """Cases of one kind, one per row of the files.

    `candidates` are in the order of the rows. `kind` is the name of the kind, `noun` what its cases
    are called, in the plural.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.num_cases = 0

    def add(self, candidate: Candidate) -> int:
        """Add a candidate; returns its index."""
        self.candidates.append(candidate)
        return len(self.candidates) - 1

    @abstractmethod
    def judge(self, answers: Sequence[CandidateAnswer]) -> Judgement:
        """What these answers, one per candidate, say about the scorer that gave them."""

    def outcome(self, subject: Subject, answers: Sequence[CandidateAnswer]) -> ScorerOutcome:
        """The outcome for a scorer that gave these answers, one per candidate."""
        failures = []
        for candidate, answer in zip(self.candidates, answers, strict=True):
            if answer.error is not None:
                failures.append(Failure(candidate.where, answer.error.code, answer.fault))
        timings = [answer.timing for answer in answers if answer.timing is not None]
        latency = latency_of(timings)
        return ScorerOutcome(subject, self.judge(answers), failures, len(answers), latency)

    def example_candidates(self, outcome: ScorerOutcome) -> dict[int, Candidate]:
        """The candidates of the outcome's examples, by index, with their units needed: the page
        shows them token by token."""
        indices = set()
        for examples in outcome.judgement.examples.values():
            for example in examples:
                indices |= {response.candidate for response in example.responses}
        candidates = {}
        for index in sorted(indices):
            candidates[index] = replace(self.candidates[index], needs_units=True)
        return candidates
