"""Answers made by hand, files in the formats of the data, for tests of the figures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenreward.eval import Candidate, CandidateAnswer, Dataset, ScorerOutcome, Subject
from tokenreward.wire import ErrorDetail
from tokenreward_client import ScorerInfo

FAILED = CandidateAnswer(error=ErrorDetail(code="sequence_too_long", message="is long"))
TIMING = (2.0, 0.5, 4, 8)


def write(path: Path, rows: Sequence[Any], *, as_array: bool = False) -> Path:
    text = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def by_text(scores: dict[str, float | None]) -> Callable[[Candidate], CandidateAnswer]:
    """The answer of a candidate is the score of its response; None: it failed."""

    def answer(candidate: Candidate) -> CandidateAnswer:
        score = scores[candidate.item["response"]]
        return FAILED if score is None else CandidateAnswer(score, timing=TIMING)

    return answer


def per_character(rewards: Sequence[float], text: str) -> CandidateAnswer:
    """One unit per character, and one more for end-of-turn."""
    ends = np.arange(len(text) + 1)
    spans = np.stack([ends, np.append(ends[1:], len(text))], axis=1)
    values = np.asarray(rewards, dtype=np.float32)
    return CandidateAnswer(float(sum(rewards)), values, spans, ("<|end|>",), timing=TIMING)


def subject(**info: Any) -> Subject:
    return Subject(
        "mine", ScorerInfo.model_validate({"name": "mine", "model": "m", "version": 1, **info})
    )


def outcome_of(dataset: Dataset, answer: Callable[[Candidate], CandidateAnswer]) -> ScorerOutcome:
    return dataset.outcome(subject(), [answer(candidate) for candidate in dataset.candidates])


def values(outcome: ScorerOutcome) -> dict[str, float | None]:
    """Every estimate's value by name."""
    return {
        name: estimate.value if estimate else None
        for name, (_, estimate) in outcome.judgement.columns.items()
    }


def titles(outcome: ScorerOutcome) -> list[str]:
    """Every estimate's title, the headline first."""
    return [title for title, _ in outcome.judgement.columns.values()]


def share_in_order(labels: Sequence[bool], scores: Sequence[float]) -> float | None:
    """The share of (positive, negative) couples in the right order, by looking at each."""
    positives = [score for label, score in zip(labels, scores, strict=True) if label]
    negatives = [score for label, score in zip(labels, scores, strict=True) if not label]
    if not positives or not negatives:
        return None
    couples = itertools.product(positives, negatives)
    in_order = sum((p > n) + 0.5 * (p == n) for p, n in couples)
    return in_order / (len(positives) * len(negatives))
