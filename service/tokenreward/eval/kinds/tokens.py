"""Kind `tokens`: responses with what is wrong in them, character by character or span by span.

A row is {prompt, response}, or {prompt, completion} or {messages}, and one of

    flagged: [[start, end], ...]     half-open character ranges that are wrong
    flags: [0, 1, ...]               one per character
    spans: [[0, 5], ...], flags      spans that tile the response, as on the wire; a flag per span

Without `spans`, units are the scorer's own tokens, so scorers of different tokenizers are judged on
different units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate, candidate
from tokenreward.eval.conversation import RESPONSE_FIELDS, PromptAs
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.kinds.flags import judge_flags, range_flags
from tokenreward.eval.outcome import Judgement
from tokenreward.eval.rows import DataRow


def tokens(rows: Sequence[DataRow], prompt_as: PromptAs) -> Dataset:
    """Responses with flags: one candidate per row. Raises EvalError."""
    read = partial(_read, prompt_as=prompt_as)
    return Dataset("tokens", "responses", rows=rows, read=read, judge=_judge)


def _read(row: DataRow, prompt_as: PromptAs) -> list[Candidate]:
    """The response, with its flags."""
    field = next((name for name in RESPONSE_FIELDS if name in row.fields), "response")
    prompt, response = row.conversation(field, prompt_as)
    spans = None
    if "flagged" in row.fields:
        if "flags" in row.fields:
            raise row.wrong("flags", "and `flagged` say the same thing: give one of them")
        flags = range_flags(row, "flagged", len(response))
    elif "spans" in row.fields:
        spans = _tiling_spans(row, len(response))
        flags = np.array(row.flags("flags", num=len(spans), of="span"), dtype=np.bool_)
    else:
        per_character = row.flags("flags", num=len(response), of="character")
        flags = np.array(per_character, dtype=np.bool_)
    new = candidate(row, prompt, response, field=field, spans=spans)
    return [replace(new, needs_score=False, needs_units=True, flags=flags)]


def _judge(dataset: Dataset, answers: Sequence[CandidateAnswer]) -> Judgement:
    """The area under the ROC curve of flagged units: its mean over responses, and the area over all
    units."""
    responses = [(row.where, index) for row, (index,) in dataset.cases]
    judgement = judge_flags(responses, dataset.candidates, answers)
    counts = dataset.counts(dataset.complete_cases(answers)) | dict(judgement.counts)
    return replace(judgement, counts=counts)


def _tiling_spans(row: DataRow, num_characters: int) -> list[list[int]]:
    """The row's spans. Raises EvalError if they do not tile the response."""
    spans, last = [], 0
    for index, (start, end) in enumerate(row.ranges("spans", noun="spans", allow_empty=False)):
        if start != last or end < last:
            message = f"is [{start}, {end}], but must start at {last} and not end before it"
            raise row.wrong(f"spans[{index}]", message)
        spans.append([start, end])
        last = end
    if last != num_characters:
        message = (
            f"end at {last}, but the response has {num_characters} characters (Unicode code points)"
        )
        raise row.wrong("spans", message)
    return spans
