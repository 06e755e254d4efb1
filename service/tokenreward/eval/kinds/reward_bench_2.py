"""Kind `reward-bench-2`: the best of several responses, and sets of equally right ones.

The data are those of Malik et al. 2025, "RewardBench 2" (2506.01937). A row is {prompt, chosen:
[...], rejected: [...], subset, id}: one chosen and three rejected responses, or in the subset Ties
any number of both, where every chosen response is right.

A prompt is right if its chosen response has the highest score; where several share the highest
score it counts for the share of right ones among them, since picking one is a lottery. A prompt
with several chosen responses is right if each of them is above each rejected one.

Ties are scored as the benchmark does. Rows come in couples, `ref:N` with one chosen response and
`tied:N` with several. Of each row, right is whether it is right, and gap how far its worst chosen
response is above its best rejected one; spread is how far apart the chosen responses of `tied:N`
are. A couple has

    0.3 right(tied) + 0.3 right(ref) + 0.2 [gap(tied) > spread]
    + 0.2 [min(gap(ref), gap(tied)) > spread] + 0.01 tanh(min(gap(ref), gap(tied)) / spread - 1)

and Ties is the mean over couples. Without any couple it is the share of right rows, and a note says
so. The average is over subsets; it is called RewardBench 2 average only if all six are there. A
prompt counts only with all its answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate, prompt_of
from tokenreward.eval.conversation import PromptAs
from tokenreward.eval.dataset import Case, Dataset, scores_of
from tokenreward.eval.outcome import Example, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import Estimate, Floats, mean, mean_of_means, share

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
NO_SUBSET = "no subset"
_TIES = "Ties"


def reward_bench_2(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Prompts with chosen and rejected responses, the chosen ones first. Raises EvalError."""
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("reward-bench-2", "prompts", rows=rows, read=read, judge=_judge)


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The chosen responses, which are right, and the rejected ones."""
    prompt, candidates = prompt_of(row, "prompt", prompt_as), []
    for side in ("chosen", "rejected"):
        for place, text in enumerate(row.texts(side)):
            candidates.append(candidate(row, prompt, text, field=f"{side}[{place}]"))
    _subset(row)  # A subset that is no string is refused before anything is asked.
    return candidates


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """The average over subsets, over prompts, and each subset."""
    complete = dataset.complete_cases(answers)
    names = {_subset(row) for row, _ in dataset.cases}
    subsets = [name for name in SUBSETS if name in names]
    subsets += sorted(names.difference(SUBSETS))
    sides = [_sides(case, answers) for case in complete]
    credits = [_credit(chosen, rejected) for chosen, rejected in sides]
    values: dict[str, Floats] = {}
    groups: dict[str, Estimate | None] = {}
    notes = ["ties are prompts whose highest score is shared by chosen and rejected responses"]
    for name in subsets:
        places = [place for place, (row, _) in enumerate(complete) if _subset(row) == name]
        values[name] = np.array([credits[place] for place in places], dtype=np.float64)
        groups[name] = share(float(values[name].sum()), len(places))
        if name == _TIES:
            ids = [str(complete[place][0].fields.get("id")) for place in places]
            couples = _couples(ids, [sides[place] for place in places])
            if len(couples):
                values[name], groups[name] = couples, mean(couples)
            else:
                notes.append(
                    "Ties has no `ref:` and `tied:` rows of one id: it is the share of "
                    "rows whose chosen responses are all above the rejected ones"
                )
    title = f"macro over {', '.join(subsets)}"
    if tuple(subsets) == SUBSETS:
        title = "RewardBench 2 average (macro)"
    counts = dataset.counts(complete)
    counts["ties"] = sum(0 < credit < 1 for credit in credits)
    every = np.array(credits, dtype=np.float64)
    return Judgement(
        {
            "macro": (title, mean_of_means(list(values.values()))),
            "micro": ("best is chosen (micro over prompts)", share(float(every.sum()), len(every))),
        },
        counts,
        groups=groups,
        groups_title="best is chosen, by subset",
        classes={
            "chosen": np.concatenate([np.empty(0), *(chosen for chosen, _ in sides)]),
            "rejected": np.concatenate([np.empty(0), *(low for _, low in sides)]),
        },
        examples={"rejected against chosen": worst([_example(case, answers) for case in complete])},
        notes=notes,
    )


def _subset(row: DataRow) -> str:
    """The row's subset. Raises EvalError."""
    if row.fields.get("subset") is None:
        return NO_SUBSET
    name = row.text("subset")
    return _TIES if name.lower() == _TIES.lower() else name


def _sides(case: Case, answers: Sequence[CandidateAnswer]) -> tuple[Floats, Floats]:
    """The scores of a row's chosen and of its rejected responses."""
    row, indices = case
    scores = scores_of(indices, answers)
    num_chosen = len(row.fields["chosen"])
    return scores[:num_chosen], scores[num_chosen:]


def _credit(chosen: Floats, rejected: Floats) -> float:
    """How right the scores of one prompt are, from 0 to 1."""
    if len(chosen) > 1:
        return float(chosen.min() > rejected.max())
    best = max(chosen[0], rejected.max())
    return float(chosen[0] == best) / (1 + int((rejected == best).sum()))


def _couples(ids: Sequence[str], sides: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The benchmark's score [couples] of each `ref:N` with its `tied:N`.

    Args:
        ids: The id of each row. If an id is there several times, its first row goes with the first
            row of the other id, and so on.
        sides: The scores of each row's chosen and of its rejected responses.
    """
    by_id: dict[tuple[str, int], tuple[Floats, Floats]] = {}
    num_of_id: Counter[str] = Counter()
    for name, each in zip(ids, sides, strict=True):
        by_id[name, num_of_id[name]] = each
        num_of_id[name] += 1
    scores = []
    for (name, time), (chosen, rejected) in by_id.items():
        start, _, number = name.partition(":")
        if start != "tied" or (f"ref:{number}", time) not in by_id:
            continue
        ref_chosen, ref_rejected = by_id[f"ref:{number}", time]
        gap, ref_gap = chosen.min() - rejected.max(), ref_chosen.min() - ref_rejected.max()
        spread, least = chosen.max() - chosen.min(), min(gap, ref_gap)
        score = (
            0.3 * (gap > 0) + 0.3 * (ref_gap > 0) + 0.2 * (gap > spread) + 0.2 * (least > spread)
        )
        if spread > 0:
            score += 0.01 * math.tanh(least / spread - 1)
        elif least != 0:
            score += math.copysign(0.01, least)  # the limit, as the spread goes to 0
        scores.append(score)
    return np.array(scores, dtype=np.float64)


def _example(case: Case, answers: Sequence[CandidateAnswer]) -> Example:
    """The worst of a row's chosen responses against the best of its rejected ones."""
    row, indices = case
    chosen, rejected = _sides(case, answers)
    low, high = int(chosen.argmin()), int(rejected.argmax())
    responses = {
        f"chosen, score {chosen[low]:+.4g}": indices[low],
        f"rejected, score {rejected[high]:+.4g}": indices[len(chosen) + high],
    }
    margin = float(rejected[high] - chosen[low])
    return Example(row.where, f"rejected minus chosen {margin:+.4g}", margin, responses)
