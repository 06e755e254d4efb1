"""Kind `best-of-n`: several responses to each prompt, each labelled right or wrong.

A row is {prompt, responses: [...], labels: [0, 1, ...]}, or one of GSM8K's
example_model_solutions.jsonl: {question, ground_truth, and one {is_correct, solution} per model}.

Top-ranked: the share of prompts whose highest-scored response is right; where several share the
highest score, the share of right ones among them, since picking one is a lottery. Random: what
picking any response gives. Oracle: the share of prompts with a right response at all, the ceiling.
AUC is of right against wrong by score, over all responses (pooled), and within each prompt that has
both (mean). A prompt counts only with all its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenreward.eval.answer import Answer
from tokenreward.eval.auc import Bools, pooled_auc, roc_auc, roc_curve
from tokenreward.eval.dataset import Dataset, PromptAs, candidate, prompt_of
from tokenreward.eval.figure import Floats, mean, share
from tokenreward.eval.rows import Row
from tokenreward.eval.verdict import Column, Example, Shown, Verdict, worst


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """One row: candidates and whether each is right."""

    where: str
    candidates: list[int]
    labels: Bools

    @property
    def is_mixed(self) -> bool:
        """Whether it has right and wrong responses."""
        return bool(self.labels.any() and not self.labels.all())


class BestOfN(Dataset):
    """Prompts with labelled responses."""

    kind = "best-of-n"
    noun = "prompts"

    def __init__(self, rows: Sequence[Row], prompt_as: PromptAs) -> None:
        super().__init__()
        self._groups = [self._group(row, prompt_as) for row in rows]
        self.num_cases = len(self._groups)

    def judge(self, answers: Sequence[Answer]) -> Verdict:
        """Accuracy of the top-ranked between chance and ceiling, and the areas."""
        judged = [
            group
            for group in self._groups
            if all(answers[i].error is None for i in group.candidates)
        ]
        scores = [np.array([answers[i].known for i in group.candidates]) for group in judged]
        tops = [
            group.labels[score == score.max()] for group, score in zip(judged, scores, strict=True)
        ]
        within = [roc_auc(group.labels, score) for group, score in zip(judged, scores, strict=True)]
        labels = (
            np.concatenate([group.labels for group in judged])
            if judged
            else np.empty(0, dtype=np.bool_)
        )
        pooled = np.concatenate(scores) if scores else np.empty(0)
        owners = np.repeat(np.arange(len(judged)), [len(score) for score in scores])
        columns = [
            Column(
                "top_ranked",
                "top-ranked is right",
                share(float(sum(top.mean() for top in tops)), len(judged)),
            ),
            Column("random", "random", mean([group.labels.mean() for group in judged])),
            Column(
                "oracle",
                "oracle",
                share(sum(bool(group.labels.any()) for group in judged), len(judged)),
            ),
            Column("auc_pooled", "AUC (pooled)", pooled_auc(labels, pooled, owners)),
            Column(
                "auc_within",
                "AUC (within prompts)",
                mean([area for area in within if area is not None]),
            ),
        ]
        counts = {
            "prompts": self.num_cases,
            "judged": len(judged),
            "failed": self.num_cases - len(judged),
        }
        counts |= {
            "with right and wrong": sum(group.is_mixed for group in judged),
            "ties": sum(map(_undecided, tops)),
        }
        mixed = [
            _example(group, score)
            for group, score in zip(judged, scores, strict=True)
            if group.is_mixed
        ]
        return Verdict(
            columns,
            counts,
            classes={"right": pooled[labels], "wrong": pooled[~labels]},
            curve=roc_curve(labels, pooled),
            curve_title="right responses found by high score",
            examples={"wrong against right": worst(mixed)},
            notes=["ties are prompts whose highest score is shared by right and wrong responses"],
        )

    def _group(self, row: Row, prompt_as: PromptAs) -> Group:
        field, responses = _gsm8k(row) if is_gsm8k(row) else _plain(row)
        prompt = prompt_of(row, field, prompt_as)
        indices = [
            self.add(candidate(row, prompt, text, field=name)) for name, text, _ in responses
        ]
        return Group(
            row.where, indices, np.array([label for _, _, label in responses], dtype=np.bool_)
        )


def is_gsm8k(row: Row) -> bool:
    """Whether it has the two fields that no other kind has together."""
    return "question" in row.fields and "ground_truth" in row.fields


def _plain(row: Row) -> tuple[str, list[tuple[str, str, bool]]]:
    texts = row.texts("responses")
    labels = row.flags("labels", num=len(texts), of="response")
    names = [f"responses[{index}]" for index in range(len(texts))]
    return "prompt", list(zip(names, texts, labels, strict=True))


def _gsm8k(row: Row) -> tuple[str, list[tuple[str, str, bool]]]:
    """Every field but question and ground truth is a model's solution."""
    responses = []
    for name in row.fields:
        if name in ("question", "ground_truth"):
            continue
        entry = row.get(name)
        if not isinstance(entry, dict) or not isinstance(entry.get("solution"), str):
            raise row.wrong(f"{name}.solution", "must be a string")
        if not isinstance(entry.get("is_correct"), bool):
            raise row.wrong(f"{name}.is_correct", "must be true or false")
        responses.append((f"{name}.solution", entry["solution"], entry["is_correct"]))
    if not responses:
        raise row.wrong("question", "has no solutions beside it: one field per model is expected")
    return "question", responses


def _undecided(top: Bools) -> bool:
    return bool(top.any() and not top.all())


def _example(group: Group, scores: Floats) -> Example:
    """The best of its wrong responses against the best of its right ones."""
    right = max(np.flatnonzero(group.labels).tolist(), key=lambda place: float(scores[place]))
    wrong = max(np.flatnonzero(~group.labels).tolist(), key=lambda place: float(scores[place]))
    shown = (
        Shown(f"right, score {scores[right]:+.4g}", group.candidates[right]),
        Shown(f"wrong, score {scores[wrong]:+.4g}", group.candidates[wrong]),
    )
    margin = float(scores[wrong] - scores[right])
    return Example(group.where, f"wrong minus right {margin:+.4g}", margin, shown)
