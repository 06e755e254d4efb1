"""Kind `rm-bench`: three styles of a right answer against three styles of a wrong one (Liu et al.,
RM-Bench).

A row is {id, prompt, chosen[3], rejected[3], domain}; styles are concise, detailed plain, detailed
Markdown. Files of one domain have no `domain`: it is taken from the file's name
(chat_filtered.json). Domains that begin with `safety` are pooled.

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

from tokenreward.eval.answer import Answer
from tokenreward.eval.dataset import Dataset, PromptAs, candidate, prompt_of
from tokenreward.eval.figure import Figure, Floats, mean_of_means
from tokenreward.eval.rows import Row
from tokenreward.eval.verdict import Column, Example, Shown, Verdict, worst

DOMAINS = ("chat", "math", "code", "safety")
STYLES = ("concise", "detailed", "Markdown")
_NUM = len(STYLES)
_CELLS = {
    "hard": np.triu_indices(_NUM, 1),
    "normal": np.diag_indices(_NUM),
    "easy": np.tril_indices(_NUM, -1),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row; `chosen` and `rejected` are indices of candidates, by style."""

    where: str
    domain: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


class RmBench(Dataset):
    """Prompts with three chosen and three rejected responses each."""

    kind = "rm-bench"
    noun = "prompts"

    def __init__(self, rows: Sequence[Row], prompt_as: PromptAs) -> None:
        super().__init__()
        self._prompts = [self._prompt(row, prompt_as) for row in rows]
        self.num_cases = len(self._prompts)
        found = {prompt.domain for prompt in self._prompts}
        self.domains = [name for name in DOMAINS if name in found] + sorted(
            found.difference(DOMAINS)
        )

    def judge(self, answers: Sequence[Answer]) -> Verdict:
        """Macro and micro average, Hard, Normal, Easy, and per domain."""
        judged = [prompt for prompt in self._prompts if _complete(prompt, answers)]
        margins = {name: np.empty((0, _NUM, _NUM)) for name in self.domains}
        for name in self.domains:
            if rows := [_margins(prompt, answers) for prompt in judged if prompt.domain == name]:
                margins[name] = np.stack(rows)
        wins = {name: (each > 0).astype(np.float64) for name, each in margins.items()}
        num_ties = sum(int((each == 0).sum()) for each in margins.values())
        counts = {
            "prompts": self.num_cases,
            "judged": len(judged),
            "failed": self.num_cases - len(judged),
        }
        scores = {
            side: np.array(
                [answers[index].known for prompt in judged for index in getattr(prompt, side)]
            )
            for side in ("chosen", "rejected")
        }
        return Verdict(
            self._columns(wins),
            counts | {"comparisons": _NUM**2 * len(judged), "ties": num_ties},
            groups={name: mean_of_means([_per_prompt(each)]) for name, each in wins.items()},
            groups_title="mean of Hard, Normal and Easy by domain",
            classes=scores,
            matrices={name: each.mean(axis=0) for name, each in wins.items() if len(each)},
            examples={
                "rejected against chosen": worst([_example(prompt, answers) for prompt in judged])
            },
            notes=self._notes(),
        )

    def _columns(self, wins: Mapping[str, Floats]) -> list[Column]:
        micro = mean_of_means([np.concatenate([_per_prompt(each) for each in wins.values()])])
        columns = [
            Column(
                "macro",
                self._macro_title(),
                mean_of_means([_per_prompt(each) for each in wins.values()]),
            ),
            Column("micro", "micro over prompts", micro),
        ]
        return columns + [Column(name, name.capitalize(), _macro(wins, name)) for name in _CELLS]

    def _macro_title(self) -> str:
        return (
            "RM-Bench average (macro)"
            if self._is_whole
            else f"macro over {', '.join(self.domains)}"
        )

    @property
    def _is_whole(self) -> bool:
        return self.domains == list(DOMAINS)

    def _notes(self) -> list[str]:
        if self._is_whole:
            return ["macro is the mean over the four domains; Hard, Normal and Easy are macro, too"]
        missing = [name for name in DOMAINS if name not in self.domains]
        said = (
            f"{', '.join(missing)} missing"
            if missing
            else "there are other domains than RM-Bench's"
        )
        return [
            f"{said}: this is not the RM-Bench average; Hard, Normal and Easy are macro over the "
            "same domains"
        ]

    def _prompt(self, row: Row, prompt_as: PromptAs) -> Prompt:
        prompt, sides = prompt_of(row, "prompt", prompt_as), []
        for side in ("chosen", "rejected"):
            texts = row.texts(side, num=_NUM)
            made = (
                candidate(row, prompt, text, field=f"{side}[{style}]")
                for style, text in enumerate(texts)
            )
            sides.append(tuple(self.add(each) for each in made))
        return Prompt(row.where, _domain(row), sides[0], sides[1])


def _domain(row: Row) -> str:
    """Its `domain`, else what the file's name begins with. Raises DataError."""
    if "domain" in row.fields:
        name = row.text("domain")
        return "safety" if name.startswith("safety") else name
    for name in DOMAINS:
        if row.file.name.startswith(name):
            return name
    message = f"is not there, and the file's name begins with none of {', '.join(DOMAINS)}"
    raise row.wrong("domain", message)


def _complete(prompt: Prompt, answers: Sequence[Answer]) -> bool:
    return all(answers[index].error is None for index in prompt.chosen + prompt.rejected)


def _margins(prompt: Prompt, answers: Sequence[Answer]) -> Floats:
    """[3, 3]: score of chosen i minus score of rejected j."""
    chosen, rejected = (
        np.array([answers[index].known for index in side])
        for side in (prompt.chosen, prompt.rejected)
    )
    margins: Floats = chosen[:, None] - rejected[None, :]
    return margins


def _per_prompt(wins: Floats) -> Floats:
    """[n] from [n, 3, 3]: the mean of Hard, Normal and Easy, which is the mean of all nine, three
    cells each."""
    means: Floats = wins.mean(axis=(1, 2))
    return means


def _macro(wins: Mapping[str, Floats], difficulty: str) -> Figure | None:
    rows, columns = _CELLS[difficulty]
    return mean_of_means([each[:, rows, columns].mean(axis=1) for each in wins.values()])


def _example(prompt: Prompt, answers: Sequence[Answer]) -> Example:
    """Its worst comparison of the nine."""
    margins = _margins(prompt, answers)
    i, j = np.unravel_index(int(np.argmin(margins)), margins.shape)
    right, wrong = prompt.chosen[int(i)], prompt.rejected[int(j)]
    shown = (
        Shown(f"chosen, {STYLES[int(i)]}, score {answers[right].known:+.4g}", right),
        Shown(f"rejected, {STYLES[int(j)]}, score {answers[wrong].known:+.4g}", wrong),
    )
    margin = float(-margins[i, j])
    return Example(prompt.where, f"rejected minus chosen {margin:+.4g}", margin, shown)
