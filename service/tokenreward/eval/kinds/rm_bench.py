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
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate, prompt_of
from tokenreward.eval.conversation import PromptAs
from tokenreward.eval.dataset import Dataset, scores_of
from tokenreward.eval.outcome import Columns, Example, Judgement, worst
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


def rm_bench(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Prompts with three chosen and three rejected responses each. Raises EvalError.

    A row has six candidates: the chosen responses by style, then the rejected ones by style.
    """
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("rm-bench", "prompts", rows=rows, read=read, judge=_judge)


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The three chosen and the three rejected responses."""
    prompt, candidates = prompt_of(row, "prompt", prompt_as), []
    for side in ("chosen", "rejected"):
        for style, text in enumerate(row.texts(side, num=_NUM)):
            candidates.append(candidate(row, prompt, text, field=f"{side}[{style}]"))
    _domain(row)  # A row without a domain is refused before anything is asked.
    return candidates


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """Macro and micro average, Hard, Normal, Easy, and per domain."""
    complete = dataset.complete_cases(answers)
    present = {_domain(row) for row, _ in dataset.cases}
    domains = [name for name in DOMAINS if name in present]
    domains += sorted(present.difference(DOMAINS))
    margins = {}
    for name in domains:
        cells = [_margins(indices, answers) for row, indices in complete if _domain(row) == name]
        margins[name] = np.array(cells, dtype=np.float64).reshape(-1, _NUM, _NUM)
    wins = {name: (each > 0).astype(np.float64) for name, each in margins.items()}
    counts = dataset.counts(complete)
    counts["comparisons"] = _NUM**2 * len(complete)
    counts["ties"] = sum(int((each == 0).sum()) for each in margins.values())
    chosen = scores_of([i for _, indices in complete for i in indices[:_NUM]], answers)
    rejected = scores_of([i for _, indices in complete for i in indices[_NUM:]], answers)
    examples = worst([_example(row, indices, answers) for row, indices in complete])
    return Judgement(
        _columns(wins),
        counts,
        groups={name: mean_of_means([_per_prompt(each)]) for name, each in wins.items()},
        groups_title="mean of Hard, Normal and Easy by domain",
        classes={"chosen": chosen, "rejected": rejected},
        matrices={name: each.mean(axis=0) for name, each in wins.items() if len(each)},
        examples={"rejected against chosen": examples},
        notes=[_note(domains)],
    )


def _columns(wins: Mapping[str, Floats]) -> Columns:
    title = f"macro over {', '.join(wins)}"
    if tuple(wins) == DOMAINS:
        title = "RM-Bench average (macro)"
    prompts = [_per_prompt(each) for each in wins.values()]
    columns = {
        "macro": (title, mean_of_means(prompts)),
        "micro": ("micro over prompts", mean_of_means([np.concatenate(prompts)])),
    }
    for name, (rows, places) in _CELLS.items():
        means = [each[:, rows, places].mean(axis=1) for each in wins.values()]
        columns[name] = (name.capitalize(), mean_of_means(means))
    return columns


def _note(domains: Sequence[str]) -> str:
    """Whether the macro average is RM-Bench's own, for a reader of the figures."""
    if tuple(domains) == DOMAINS:
        return "macro is the mean over the four domains; Hard, Normal and Easy are macro, too"
    reason = "there are other domains than RM-Bench's"
    missing = [name for name in DOMAINS if name not in domains]
    if missing:
        reason = f"{', '.join(missing)} missing"
    return (
        f"{reason}: this is not the RM-Bench average; Hard, Normal and Easy are macro over the "
        "same domains"
    )


def _domain(row: DataRow) -> str:
    """The row's `domain`, or else what the file's name begins with. Raises EvalError."""
    if "domain" in row.fields:
        name = row.text("domain")
        return "safety" if name.startswith("safety") else name
    for name in DOMAINS:
        if row.file.name.startswith(name):
            return name
    message = f"is not there, and the file's name begins with none of {', '.join(DOMAINS)}"
    raise row.wrong("domain", message)


def _margins(indices: range, answers: Sequence[CandidateAnswer]) -> Floats:
    """Score of chosen i minus score of rejected j, [3, 3], of a row's six candidates."""
    chosen, rejected = scores_of(indices, answers).reshape(2, _NUM)
    margins: Floats = chosen[:, None] - rejected[None, :]
    return margins


def _per_prompt(wins: Floats) -> Floats:
    """The mean of Hard, Normal and Easy of each prompt, [n] from [n, 3, 3].

    It is the mean of all nine cells, since each of the three has three cells.
    """
    means: Floats = wins.mean(axis=(1, 2))
    return means


def _example(row: DataRow, indices: range, answers: Sequence[CandidateAnswer]) -> Example:
    """The worst of the row's nine comparisons."""
    margins = _margins(indices, answers)
    i, j = divmod(int(np.argmin(margins)), _NUM)
    right, wrong = indices[i], indices[_NUM + j]
    right_score, wrong_score = scores_of((right, wrong), answers).tolist()
    responses = {
        f"chosen, {STYLES[i]}, score {right_score:+.4g}": right,
        f"rejected, {STYLES[j]}, score {wrong_score:+.4g}": wrong,
    }
    margin = float(-margins[i, j])
    return Example(row.where, f"rejected minus chosen {margin:+.4g}", margin, responses)
