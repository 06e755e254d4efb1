"""Answers made by hand, files in the formats of the data, for tests of the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenreward.eval import Answer, Candidate, Dataset, Judged, Subject, judged
from tokenreward.eval.answer import Timing, Units
from tokenreward.wire import ErrorDetail
from tokenreward_client import ScorerInfo

FAILED = Answer(error=ErrorDetail(code="sequence_too_long", message="is long"))
TIMING = Timing(2.0, 0.5, 4, 8)


def write(path: Path, rows: Sequence[Any], *, as_array: bool = False) -> Path:
    text = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def by_text(scores: dict[str, float | None]) -> Callable[[Candidate], Answer]:
    """The answer of a candidate is the score of its response; None: it failed."""

    def answer(candidate: Candidate) -> Answer:
        score = scores[candidate.item["response"]]
        return FAILED if score is None else Answer(score, timing=TIMING)

    return answer


def per_character(rewards: Sequence[float], text: str) -> Answer:
    """One unit per character, and one more for end-of-turn."""
    ends = np.arange(len(text) + 1)
    spans = np.stack([ends, np.append(ends[1:], len(text))], axis=1)
    units = Units(np.asarray(rewards, dtype=np.float32), spans, ("<|end|>",))
    return Answer(float(sum(rewards)), units, timing=TIMING)


def subject(**info: Any) -> Subject:
    return Subject(
        "mine", ScorerInfo.model_validate({"name": "mine", "model": "m", "version": 1, **info})
    )


def verdict_of(dataset: Dataset, answer: Callable[[Candidate], Answer]) -> Judged:
    return judged(subject(), dataset, [answer(candidate) for candidate in dataset.candidates])


def values(row: Judged) -> dict[str, float | None]:
    """Every figure's value by name."""
    return {
        column.name: column.figure.value if column.figure else None
        for column in row.verdict.columns
    }
