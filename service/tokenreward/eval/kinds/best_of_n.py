"""Kind `best-of-n`: several responses to each prompt, each labelled right or wrong.

A row is {prompt, responses: [...], labels: [0, 1, ...]}, or another one that `response_forms`
reads. Where responses have scores or ranks, the best are right and all others wrong.

Top-ranked: the share of prompts whose highest-scored response is right; where several share the
highest score, the share of right ones among them, since picking one is a lottery. Random: what
picking any response gives. Oracle: the share of prompts with a right response at all, the ceiling.
AUC is of right against wrong by score, over all responses (pooled), and within each prompt that has
both (mean). A prompt counts only with all its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate
from tokenreward.eval.conversation import PromptAs
from tokenreward.eval.dataset import Dataset, scores_of
from tokenreward.eval.kinds.response_forms import responses_of
from tokenreward.eval.outcome import Columns, Example, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import Bools, Floats, mean, pooled_auc, roc_auc, roc_curve, share


def best_of_n(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Prompts with labelled responses: one candidate per response. Raises EvalError."""
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("best-of-n", "prompts", rows=rows, read=read, judge=_judge)


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The responses, each right or wrong."""
    candidates = []
    for path, text, is_right in responses_of(row):
        whole = replace(row, fields={**row.fields, path: text})
        prompt, response = whole.conversation(path, prompt_as)
        new = candidate(row, prompt, response, field=path)
        candidates.append(replace(new, is_right=is_right))
    return candidates


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """How often the top-ranked response is right, beside chance and ceiling; and the areas."""
    complete = dataset.complete_cases(answers)
    labels, scores = [np.empty(0, np.bool_)], [np.empty(0)]
    tops, examples = [], []
    for row, indices in complete:
        label = np.array([dataset.candidates[i].is_right for i in indices], dtype=np.bool_)
        score = scores_of(indices, answers)
        labels.append(label)
        scores.append(score)
        tops.append(label[score == score.max()])
        if _is_mixed(label):
            examples.append(_example(row, indices, label, score))
    counts = dataset.counts(complete)
    counts["with right and wrong"] = len(examples)
    counts["ties"] = sum(map(_is_mixed, tops))
    label, score = np.concatenate(labels), np.concatenate(scores)
    return Judgement(
        _columns(labels[1:], scores[1:], tops),
        counts,
        classes={"right": score[label], "wrong": score[~label]},
        curve=roc_curve(label, score),
        curve_title="right responses found by high score",
        examples={"wrong against right": worst(examples)},
        notes=["ties are prompts whose highest score is shared by right and wrong responses"],
    )


def _columns(labels: Sequence[Bools], scores: Sequence[Floats], tops: Sequence[Bools]) -> Columns:
    """The estimates.

    Args:
        labels: Whether each response is right, [responses] per prompt.
        scores: The score of each response, [responses] per prompt.
        tops: The labels of the responses that share the highest score, per prompt.
    """
    num = len(labels)
    within = [roc_auc(label, score) for label, score in zip(labels, scores, strict=True)]
    owners = np.repeat(np.arange(num), [len(label) for label in labels])
    pooled = None
    if num:
        pooled = pooled_auc(np.concatenate(labels), np.concatenate(scores), owners)
    right_on_top = share(float(sum(top.mean() for top in tops)), num)
    oracle = share(sum(bool(label.any()) for label in labels), num)
    return {
        "top_ranked": ("top-ranked is right", right_on_top),
        "random": ("random", mean([label.mean() for label in labels])),
        "oracle": ("oracle", oracle),
        "auc_pooled": ("AUC (pooled)", pooled),
        "auc_within": ("AUC (within prompts)", mean([a for a in within if a is not None])),
    }


def _is_mixed(labels: Bools) -> bool:
    """Whether some are right and some are wrong."""
    return bool(labels.any() and not labels.all())


def _example(row: DataRow, indices: range, labels: Bools, scores: Floats) -> Example:
    """The best of the row's wrong responses against the best of its right ones."""
    right = int(np.argmax(np.where(labels, scores, -np.inf)))
    wrong = int(np.argmax(np.where(labels, -np.inf, scores)))
    responses = {
        f"right, score {scores[right]:+.4g}": indices[right],
        f"wrong, score {scores[wrong]:+.4g}": indices[wrong],
    }
    margin = float(scores[wrong] - scores[right])
    return Example(row.where, f"wrong minus right {margin:+.4g}", margin, responses)
