"""Kind `steps`: solutions cut into steps, with what is known of each step.

A row is one of those that `step_forms` reads: ProcessBench, TRL's stepwise supervision, PRM800K,
Math-Shepherd, PRMBench. The steps of a solution are sent as its `steps`, and each is a unit.

The scorer says a score of each step, as `process` does. The step that it calls wrong is the first
one whose probability is below one half. Accuracy on wrong solutions is the share whose first wrong
step is that step, accuracy on right ones the share where no step is called wrong, and F1 their
harmonic mean (Zheng et al. 2024, "ProcessBench", 2412.06559). The area is of wrong steps against
right ones by low score. What follows the first wrong step is judged nowhere: there, right and wrong
have no agreed meaning. F1 is also by group: a row's `subset`, its `task`, its `classification`, or
what stands before the number in its `id` (`gsm8k-17`).

Rows of PRMBench have its own score, too, which judges every step (see `prm_score`): over all of
them, and by classification in the place of F1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate
from tokenreward.eval.conversation import PromptAs
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.kinds.prm_score import prm_score, step_counts
from tokenreward.eval.kinds.step_forms import is_prm_bench, solution_of
from tokenreward.eval.outcome import Example, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import (
    Bools,
    Estimate,
    Floats,
    Ints,
    mean_of_f1s,
    pooled_auc,
    roc_curve,
    share,
)

PROCESS_BENCH = ("gsm8k", "math", "olympiadbench", "omnimath")
JOINER = "\n\n"
"""Between two steps of a response."""

_NUMBERED = re.compile(r"(\w+)-\d+")


def steps(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Solutions in steps: one candidate per row. Raises EvalError."""
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("steps", "solutions", rows=rows, read=read, judge=_judge)


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The solution, with its steps as units and a flag for each; nothing if it is not known which
    of its steps is wrong."""
    solution = solution_of(row, prompt_as)
    if solution is None:
        return []
    prompt, field, texts, wrong = solution
    spans, start = [], 0
    for place, text in enumerate(texts):
        if not text.strip():
            raise row.wrong(f"{field}[{place}]", "is a step without text")
        end = start + len(text) + len(JOINER)
        spans.append([start, end])
        start = end
    spans[-1][1] -= len(JOINER)
    new = candidate(row, prompt, JOINER.join(texts), field=field, spans=spans, steps=spans)
    flags = np.array(wrong, dtype=np.bool_)
    return [replace(new, needs_score=False, needs_steps=True, flags=flags)]


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """F1 of the first wrong step, its two accuracies, F1 by group, and the area over steps."""
    complete = dataset.complete_cases(answers)
    is_wrong, is_hit = np.zeros(len(complete), np.bool_), np.zeros(len(complete), np.bool_)
    labels, scores, owners = [np.empty(0, np.bool_)], [np.empty(0)], [np.empty(0, np.int64)]
    examples = []
    for number, (row, (index,)) in enumerate(complete):
        flags = dataset.candidates[index].require_flags()
        step_scores = answers[index].require_steps()
        first, guess = _first(flags), _first(step_scores < 0.5)
        is_wrong[number], is_hit[number] = first < len(flags), guess == first
        labels.append(flags[: first + 1])
        scores.append(-step_scores[: first + 1].astype(np.float64))
        owners.append(np.full(len(labels[-1]), number))
        if guess != first:
            examples.append(_example(row, index, first, guess, step_scores))
    label, score = np.concatenate(labels), np.concatenate(scores)
    counts = dataset.counts(complete)
    counts["wrong solutions"] = int(is_wrong.sum())
    names = [_group(row) for row, _ in complete]
    strata = {}
    for group in dict.fromkeys(_group(row) for row, _ in dataset.cases):
        is_here = np.array([name == group for name in names], dtype=np.bool_)
        strata[group] = is_hit[is_here & is_wrong], is_hit[is_here & ~is_wrong]
    columns = _columns(strata, is_hit[is_wrong], is_hit[~is_wrong])
    columns["step_auc"] = ("step AUC", pooled_auc(label, score, np.concatenate(owners)))
    groups = {name: mean_of_f1s([each]) for name, each in strata.items()}
    title = "F1 by group"
    if all(is_prm_bench(row) for row, _ in dataset.cases):
        counts_of: dict[str, list[Ints]] = {name: [] for name in strata}
        for row, (index,) in complete:
            probabilities = answers[index].require_steps()
            flags = dataset.candidates[index].require_flags()
            counts_of[_group(row)].append(step_counts(flags, probabilities))
        every = [each for group in counts_of.values() for each in group]
        columns = {"prm_score": ("PRMScore", prm_score(every)), **columns}
        groups = {name: prm_score(each) for name, each in counts_of.items()}
        title = "PRMScore by classification"
    return Judgement(
        columns,
        counts,
        groups=groups if len(groups) > 1 else {},
        groups_title=title,
        classes={"right steps": -score[~label], "wrong steps": -score[label]},
        curve=roc_curve(label, score),
        curve_title="wrong steps found by low score",
        examples={"first wrong step missed": worst(examples)},
    )


def _columns(
    strata: Mapping[str, tuple[Bools, Bools]], on_wrong: Bools, on_right: Bools
) -> dict[str, tuple[str, Estimate | None]]:
    """F1 over all solutions and over groups, and the accuracies.

    Args:
        strata: By group, whether each of its wrong solutions and each of its right ones is a hit.
        on_wrong: Whether each wrong solution is a hit.
        on_right: Whether each right solution is a hit.
    """
    columns = {"f1": ("F1 (first wrong step)", mean_of_f1s([(on_wrong, on_right)]))}
    if len(strata) > 1:
        title = f"F1 (mean over {', '.join(strata)})"
        if set(strata) == set(PROCESS_BENCH):
            title = "ProcessBench average F1"
        columns["f1_macro"] = (title, mean_of_f1s(list(strata.values())))
    columns["accuracy_wrong"] = ("accuracy on wrong", share(int(on_wrong.sum()), len(on_wrong)))
    columns["accuracy_right"] = ("accuracy on right", share(int(on_right.sum()), len(on_right)))
    return columns


def _first(flags: Bools) -> int:
    """The index of the first flag that is set; the number of flags if none is."""
    return int(np.argmax(flags)) if flags.any() else len(flags)


def _group(row: DataRow) -> str:
    """What the row's figures are counted under."""
    for name in ("subset", "task", "classification"):
        if isinstance(row.fields.get(name), str):
            return str(row.fields[name])
    match = _NUMBERED.fullmatch(str(row.fields.get("id", "")))
    return match[1] if match is not None else "all"


def _example(row: DataRow, index: int, first: int, guess: int, scores: Floats) -> Example:
    """A solution whose first wrong step is not the one that the scorer calls wrong."""
    # How far the score of the earlier of the two is on the wrong side.
    margin = abs(float(scores[min(first, guess)]) - 0.5)
    words = [f"step {place}" if place < len(scores) else "no step" for place in (first, guess)]
    fault = f"{words[0]} is wrong, {words[1]} is called wrong (steps from 0)"
    return Example(row.where, fault, margin, {"what is underlined is wrong": index})
