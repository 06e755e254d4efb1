"""Kind `rm-bench`: three styles of a right answer against three styles of a wrong one.

The data are those of Liu et al., RM-Bench. A row is {id, prompt, chosen[3], rejected[3], domain};
styles are concise, detailed plain, detailed Markdown. Files of one domain have no `domain`: it is
taken from the file's name (chat_filtered.json). Domains that begin with `safety` are pooled.

M[i][j] is the share of prompts whose chosen i has a strictly higher score than rejected j. Hard is
the mean of the upper triangle (i < j: the wrong answer is dressed up), Normal of the diagonal, Easy
of the lower triangle; a domain's score is the mean of the three. Macro is the mean over domains,
micro over prompts: on the published files they differ by more than a point, so each is named. The
macro is called RM-Bench average only if chat, math, code and safety are all there. A prompt counts
only with all six answers. Intervals are bootstraps over prompts, within each domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import PromptAs, candidate, prompt_of
from tokenreward.eval.dataset import Dataset, have_answers
from tokenreward.eval.outcome import Column, Example, ExampleResponse, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import Floats, mean_of_means

DOMAINS = ("chat", "math", "code", "safety")
STYLES = ("concise", "detailed", "Markdown")
_NUM = len(STYLES)
_CELLS = {
    "hard": np.triu_indices(_NUM, 1),
    "normal": np.diag_indices(_NUM),
    "easy": np.tril_indices(_NUM, -1),
}


@dataclass(frozen=True, slots=True)
class StyledPrompt:
    """One row; `chosen` and `rejected` are indices of candidates, by style."""

    where: str
    domain: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


class RmBench(Dataset):
    """Prompts with three chosen and three rejected responses each."""

    kind = "rm-bench"
    noun = "prompts"

    def __init__(self, rows: Sequence[DataRow], prompt_as: PromptAs) -> None:
        super().__init__()
        self._prompts = [self._prompt(row, prompt_as) for row in rows]
        self.num_cases = len(self._prompts)
        present = {prompt.domain for prompt in self._prompts}
        others = sorted(present.difference(DOMAINS))
        self.domains = [name for name in DOMAINS if name in present] + others

    def judge(self, answers: Sequence[CandidateAnswer]) -> Judgement:
        """Macro and micro average, Hard, Normal, Easy, and per domain."""
        complete = [p for p in self._prompts if have_answers(p.chosen + p.rejected, answers)]
        margins = {}
        for name in self.domains:
            cells = [_margins(prompt, answers) for prompt in complete if prompt.domain == name]
            margins[name] = np.array(cells, dtype=np.float64).reshape(-1, _NUM, _NUM)
        wins = {name: (each > 0).astype(np.float64) for name, each in margins.items()}
        counts = {
            "prompts": self.num_cases,
            "judged": len(complete),
            "failed": self.num_cases - len(complete),
            "comparisons": _NUM**2 * len(complete),
            "ties": sum(int((each == 0).sum()) for each in margins.values()),
        }
        chosen = [answers[i].require_score() for prompt in complete for i in prompt.chosen]
        rejected = [answers[i].require_score() for prompt in complete for i in prompt.rejected]
        examples = worst([_example(prompt, answers) for prompt in complete])
        return Judgement(
            self._columns(wins),
            counts,
            groups={name: mean_of_means([_per_prompt(each)]) for name, each in wins.items()},
            groups_title="mean of Hard, Normal and Easy by domain",
            classes={"chosen": np.array(chosen), "rejected": np.array(rejected)},
            matrices={name: each.mean(axis=0) for name, each in wins.items() if len(each)},
            examples={"rejected against chosen": examples},
            notes=[self._note()],
        )

    def _columns(self, wins: Mapping[str, Floats]) -> list[Column]:
        title = f"macro over {', '.join(self.domains)}"
        if self._is_whole:
            title = "RM-Bench average (macro)"
        prompts = [_per_prompt(each) for each in wins.values()]
        columns = [
            Column("macro", title, mean_of_means(prompts)),
            Column("micro", "micro over prompts", mean_of_means([np.concatenate(prompts)])),
        ]
        for name, (rows, places) in _CELLS.items():
            means = [each[:, rows, places].mean(axis=1) for each in wins.values()]
            columns.append(Column(name, name.capitalize(), mean_of_means(means)))
        return columns

    @property
    def _is_whole(self) -> bool:
        """Whether the domains are RM-Bench's, all four and no other."""
        return self.domains == list(DOMAINS)

    def _note(self) -> str:
        if self._is_whole:
            return "macro is the mean over the four domains; Hard, Normal and Easy are macro, too"
        reason = "there are other domains than RM-Bench's"
        missing = [name for name in DOMAINS if name not in self.domains]
        if missing:
            reason = f"{', '.join(missing)} missing"
        return (
            f"{reason}: this is not the RM-Bench average; Hard, Normal and Easy are macro over the "
            "same domains"
        )

    def _prompt(self, row: DataRow, prompt_as: PromptAs) -> StyledPrompt:
        prompt, sides = prompt_of(row, "prompt", prompt_as), []
        for side in ("chosen", "rejected"):
            indices = []
            for style, text in enumerate(row.texts(side, num=_NUM)):
                new = candidate(row, prompt, text, field=f"{side}[{style}]")
                indices.append(self.add(new))
            sides.append(tuple(indices))
        return StyledPrompt(row.where, _domain(row), sides[0], sides[1])


def _domain(row: DataRow) -> str:
    """The row's `domain`, or else what the file's name begins with. Raises DataError."""
    if "domain" in row.fields:
        name = row.text("domain")
        return "safety" if name.startswith("safety") else name
    for name in DOMAINS:
        if row.file.name.startswith(name):
            return name
    message = f"is not there, and the file's name begins with none of {', '.join(DOMAINS)}"
    raise row.wrong("domain", message)


def _margins(prompt: StyledPrompt, answers: Sequence[CandidateAnswer]) -> Floats:
    """Score of chosen i minus score of rejected j, [3, 3]."""
    chosen = np.array([answers[i].require_score() for i in prompt.chosen])
    rejected = np.array([answers[i].require_score() for i in prompt.rejected])
    margins: Floats = chosen[:, None] - rejected[None, :]
    return margins


def _per_prompt(wins: Floats) -> Floats:
    """The mean of Hard, Normal and Easy of each prompt, [n] from [n, 3, 3].

    It is the mean of all nine cells, since each of the three has three cells.
    """
    means: Floats = wins.mean(axis=(1, 2))
    return means


def _example(prompt: StyledPrompt, answers: Sequence[CandidateAnswer]) -> Example:
    """The worst of the prompt's nine comparisons."""
    margins = _margins(prompt, answers)
    i, j = divmod(int(np.argmin(margins)), _NUM)
    right, wrong = prompt.chosen[i], prompt.rejected[j]
    right_score, wrong_score = answers[right].require_score(), answers[wrong].require_score()
    responses = (
        ExampleResponse(f"chosen, {STYLES[i]}, score {right_score:+.4g}", right),
        ExampleResponse(f"rejected, {STYLES[j]}, score {wrong_score:+.4g}", wrong),
    )
    margin = float(-margins[i, j])
    return Example(prompt.where, f"rejected minus chosen {margin:+.4g}", margin, responses)
