"""The outcome for one scorer: figures, counts, what plots are drawn from, the worst cases, and what
failed.

It is the same for all kinds of data, so that tables, JSON and the page need not know them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tokenreward.eval.answer import Answer
from tokenreward.eval.asking import Subject
from tokenreward.eval.auc import Curve
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.figure import Figure, Floats
from tokenreward.eval.latency import Latency, latency_of

NUM_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Column:
    """One figure under its name in JSON and its title for people; None if there was nothing to
    judge."""

    name: str
    title: str
    figure: Figure | None


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A response of an example: what it is called, which candidate it is, and its flagged
    characters, if known."""

    label: str
    candidate: int
    flagged: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A case to look at. `said` is what is wrong with it, `margin` how much."""

    where: str
    said: str
    margin: float
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What a dataset says of one scorer's answers.

    `columns`: the figures, the headline first. `counts`: cases by what became of them; `ties` among
    them if there can be any. `groups`: a figure per subset or domain, all of which `groups_title`
    names. `classes`: score by what it belongs to, two of them. `matrices`: RM-Bench's 3 x 3 per
    domain. `examples`: lists of the worst cases, by what the list is called.
    """

    columns: Sequence[Column]
    counts: Mapping[str, int]
    groups: Mapping[str, Figure | None] = field(default_factory=dict)
    groups_title: str = ""
    classes: Mapping[str, Floats] = field(default_factory=dict)
    matrices: Mapping[str, Floats] = field(default_factory=dict)
    curve: Curve | None = None
    curve_title: str = ""
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A candidate without an answer."""

    where: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One scorer's row: who was asked, what its answers are worth, what failed, how long it
    took."""

    subject: Subject
    verdict: Verdict
    failures: Sequence[Failure]
    num_items: int
    latency: Latency | None

    @property
    def ties(self) -> int | None:
        """Cases that equal scores left undecided; None where there can be none."""
        return self.verdict.counts.get("ties")

    @property
    def codes(self) -> dict[str, int]:
        """How often each error code, the most frequent first."""
        return dict(Counter(failure.code for failure in self.failures).most_common())


def judged(subject: Subject, dataset: Dataset, answers: Sequence[Answer]) -> Judged:
    """The row of one scorer; `answers` has one per candidate of the dataset."""
    failures = [
        Failure(candidate.where, answer.error.code, answer.error.message)
        for candidate, answer in zip(dataset.candidates, answers, strict=True)
        if answer.error is not None
    ]
    return Judged(subject, dataset.judge(answers), failures, len(answers), latency_of(answers))


def worst(examples: Sequence[Example]) -> list[Example]:
    """The ten most wrong, the worst first."""
    return sorted(examples, key=lambda example: -example.margin)[:NUM_EXAMPLES]
