"""The outcome for one scorer: estimates, counts, the material of plots, the worst cases, failures.

It is the same for all kinds of data, so the three reports need not know them. It knows no files and
no kinds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.statistics import Estimate, Floats, Latency
from tokenreward.eval.subject import Subject

NUM_EXAMPLES = 10

Columns = Mapping[str, tuple[str, Estimate | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A case to look at.

    `where` is its row, `fault` is what is wrong with it, `margin` how wrong it is. `responses` are
    indices of candidates, by what the page calls them.
    """

    where: str
    fault: str
    margin: float
    responses: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What a dataset says of one scorer's answers.

    Attributes:
        columns: The estimates by their name in JSON, the headline first, each with its title for
            people. An estimate is None if no case was judged.
        counts: Cases by what became of them; `ties` is one of them if there can be any.
        groups: An estimate per subset or domain. `groups_title` says what all of them estimate.
        classes: The scores [n] of each of two classes, such as `chosen` and `rejected`.
        matrices: RM-Bench's shares [3, 3] per domain.
        curve: A ROC curve [2, k], as `roc_curve` makes it. `curve_title` says of what.
        examples: Lists of the worst cases, by the title of the list.
        notes: Sentences for a reader of the figures.
    """

    columns: Columns
    counts: Mapping[str, int]
    groups: Mapping[str, Estimate | None] = field(default_factory=dict)
    groups_title: str = ""
    classes: Mapping[str, Floats] = field(default_factory=dict)
    matrices: Mapping[str, Floats] = field(default_factory=dict)
    curve: Floats | None = None
    curve_title: str = ""
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ScorerOutcome:
    """The outcome for one scorer: its row in every table.

    `failures` has `(where, code, message)` for each candidate without an answer: where it stands,
    and its error. `example_answers` has the answers with units for the candidates of the examples,
    by the index of the candidate; it is empty unless a page is wanted.
    """

    subject: Subject
    judgement: Judgement
    failures: Sequence[tuple[str, str, str]]
    num_items: int
    latency: Latency | None
    example_answers: Mapping[int, CandidateAnswer] = field(default_factory=dict)

    @property
    def ties(self) -> int | None:
        """Cases that equal scores left undecided; None where there can be none."""
        return self.judgement.counts.get("ties")

    @property
    def codes(self) -> dict[str, int]:
        """How often each error code came, the most frequent first."""
        return dict(Counter(code for _, code, _ in self.failures).most_common())


def worst(examples: Sequence[Example]) -> list[Example]:
    """The ten most wrong, the worst first."""
    return sorted(examples, key=lambda example: -example.margin)[:NUM_EXAMPLES]
