"""Kind `preference`: pairs of a chosen and a rejected response.

A row is {prompt, chosen, rejected}, with an optional `subset`: RewardBench's texts, or messages, or
dialogues, in any form that `tokenreward.eval.conversation` reads; or two responses and a verdict,
in a form that `pair_forms` reads. A pair is right if the chosen response has the strictly higher
score; equal scores are no win, and are counted apart as ties. Micro is over pairs, macro over
subsets.

`rejected_flagged`, optional: half-open character ranges of the rejected response that are known to
be wrong. Rows that have it are also judged token by token (see `flags`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate
from tokenreward.eval.conversation import PromptAs
from tokenreward.eval.dataset import Case, Dataset, scores_of
from tokenreward.eval.kinds.flags import judge_flags, range_flags
from tokenreward.eval.kinds.pair_forms import pair_of
from tokenreward.eval.outcome import Example, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import Bools, Estimate, mean_of_shares, share

NO_SUBSET = "no subset"


def preference(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Pairs, with or without flagged characters. Raises EvalError.

    A row has two candidates: the chosen response, then the rejected one.
    """
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("preference", "pairs", rows=rows, read=read, judge=_judge)


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The chosen and the rejected response; nothing where neither is better."""
    pair = pair_of(row)
    if pair is None:
        return []
    row, chosen_field, rejected_field = pair
    prompt, chosen = row.conversation(chosen_field, prompt_as)
    if chosen_field == "messages" and isinstance(row.get(rejected_field), str):
        rejected_prompt, rejected = prompt, row.text(rejected_field)
    else:
        rejected_prompt, rejected = row.conversation(rejected_field, prompt_as)
    flags = None
    if "rejected_flagged" in row.fields:
        flags = range_flags(row, "rejected_flagged", len(rejected))
    if row.fields.get("subset") is not None:
        row.text("subset")  # A subset that is no string is refused before anything is asked.
    first = candidate(row, prompt, chosen, field=chosen_field)
    second = candidate(row, rejected_prompt, rejected, field=rejected_field)
    return [first, replace(second, needs_units=flags is not None, flags=flags)]


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """Accuracy per subset, micro and macro; the token areas of flagged responses."""
    complete = dataset.complete_cases(answers)
    chosen = scores_of([index for _, (index, _) in complete], answers)
    rejected = scores_of([index for _, (_, index) in complete], answers)
    wins = chosen > rejected
    counts = dataset.counts(complete)
    counts["wrong"] = int((chosen < rejected).sum())
    counts["ties"] = int((chosen == rejected).sum())
    columns = {"accuracy": ("pair accuracy", share(float(wins.sum()), len(complete)))}
    groups = _subset_accuracies(dataset, complete, wins)
    if groups:
        macro = mean_of_shares(list(groups.values()))
        columns["accuracy_macro"] = ("macro over subsets", macro)
    examples = worst([_example(row, indices, answers) for row, indices in complete])
    judgement = Judgement(
        columns,
        counts,
        groups=groups,
        groups_title="pair accuracy by subset",
        classes={"chosen": chosen, "rejected": rejected},
        examples={"rejected against chosen": examples},
    )
    return _with_token_areas(dataset, judgement, answers)


def _with_token_areas(
    dataset: Dataset, judgement: Judgement, answers: Sequence[CandidateAnswer]
) -> Judgement:
    """Add the areas of the rejected responses that have flags, if any has.

    Their tokens count without an answer for the chosen response.
    """
    responses = []
    for row, (_, index) in dataset.cases:
        if dataset.candidates[index].flags is not None:
            responses.append((row.where, index))
    if not responses:
        return judgement
    tokens = judge_flags(responses, dataset.candidates, answers)
    return replace(
        judgement,
        columns={**judgement.columns, **tokens.columns},
        examples={**judgement.examples, **tokens.examples},
        curve=tokens.curve,
        curve_title=tokens.curve_title,
    )


def _subset_accuracies(
    dataset: Dataset, complete: Sequence[Case], wins: Bools
) -> dict[str, Estimate | None]:
    """Accuracy per subset, in the order of the file; empty if no row names a subset."""
    if not any(row.fields.get("subset") for row, _ in dataset.cases):
        return {}
    accuracies = {}
    for name in dict.fromkeys(_subset(row) for row, _ in dataset.cases):
        is_here = np.array([_subset(row) == name for row, _ in complete], dtype=np.bool_)
        accuracies[name] = share(int(wins[is_here].sum()), int(is_here.sum()))
    return accuracies


def _subset(row: DataRow) -> str:
    return row.fields.get("subset") or NO_SUBSET


def _example(row: DataRow, indices: range, answers: Sequence[CandidateAnswer]) -> Example:
    chosen, rejected = scores_of(indices, answers).tolist()
    responses = {
        f"chosen, score {chosen:+.4g}": indices[0],
        f"rejected, score {rejected:+.4g}": indices[1],
    }
    margin = rejected - chosen
    return Example(row.where, f"rejected minus chosen {margin:+.4g}", margin, responses)
