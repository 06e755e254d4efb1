"""Kind `unpaired`: single responses, each labelled good or bad, as KTO is trained on.

A row is {prompt, completion, label}: text or messages, and true for a good response (TRL). The
response may be `response`, or `messages` that end in it (ms-swift), and the label `kto_tag`
(LLaMA-Factory); 1 and 0 are true and false.

The area under the ROC curve is of good against bad responses by score: over all of them (pooled),
and within each prompt that has both (mean). Pooled, scores of different prompts are compared, as
KTO's own loss does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate
from tokenreward.eval.conversation import RESPONSE_FIELDS, PromptAs, kind_of
from tokenreward.eval.dataset import Dataset, scores_of
from tokenreward.eval.outcome import Example, Judgement, worst
from tokenreward.eval.rows import DataRow
from tokenreward.eval.statistics import mean, pooled_auc, roc_auc, roc_curve

_LABELS = ("label", "kto_tag")


def unpaired(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Labelled responses: one candidate per row. Raises EvalError."""
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("unpaired", "responses", rows=rows, read=read, judge=_judge)


def unpaired_fields(row: DataRow) -> tuple[str, str] | None:
    """The fields of a row's response and of its label; None if it has no such fields."""
    field = next((name for name in RESPONSE_FIELDS if row.fields.get(name) is not None), None)
    label = next((name for name in _LABELS if row.fields.get(name) is not None), None)
    if field is None or label is None or row.scalar(label) not in (True, False):
        return None
    return field, label


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The response, good or bad."""
    field = next((name for name in RESPONSE_FIELDS if name in row.fields), "completion")
    label = next((name for name in _LABELS if name in row.fields), "label")
    prompt, response = row.conversation(field, prompt_as)
    row.get(label)
    value = row.scalar(label)
    if value not in (True, False):  # 1 and 0, too
        raise row.wrong(label, f"must be true or false, got {kind_of(value)}")
    new = candidate(row, prompt, response, field=field)
    return [replace(new, is_right=bool(value))]


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """The areas, over all responses and within prompts."""
    complete = dataset.complete_cases(answers)
    candidates = [dataset.candidates[index] for _, (index,) in complete]
    score = scores_of([index for _, (index,) in complete], answers)
    label = np.array([each.is_right for each in candidates], dtype=np.bool_)
    # Responses to one prompt are not independent: they are one cluster.
    numbers: dict[str, int] = {}
    clusters = np.empty(len(candidates), dtype=np.int64)
    for place, each in enumerate(candidates):
        prompt = json.dumps(each.item["prompt"], sort_keys=True)
        clusters[place] = numbers.setdefault(prompt, len(numbers))
    within = []
    order = np.argsort(clusters, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        area = roc_auc(label[places], score[places])
        if area is not None:
            within.append(area)
    counts = dataset.counts(complete)
    counts["good"] = int(label.sum())
    counts["prompts with good and bad"] = len(within)
    examples = []
    if label.any() and not label.all():
        # How far a response is on the wrong side of the middle between both classes.
        middle = (np.median(score[label]) + np.median(score[~label])) / 2
        for place, (row, (index,)) in enumerate(complete):
            margin = float(middle - score[place] if label[place] else score[place] - middle)
            name = "good" if label[place] else "bad"
            fault = f"{name}, score {score[place]:+.4g}"
            examples.append(Example(row.where, fault, margin, {fault: index}))
    return Judgement(
        {
            "auc_pooled": ("AUC (pooled)", pooled_auc(label, score, clusters)),
            "auc_within": ("AUC (within prompts)", mean(within)),
        },
        counts,
        classes={"good": score[label], "bad": score[~label]},
        curve=roc_curve(label, score),
        curve_title="good responses found by high score",
        examples={"on the wrong side": worst(examples)},
    )
