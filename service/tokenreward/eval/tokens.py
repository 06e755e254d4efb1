"""Kind `tokens`: responses with what is wrong in them, character by character or span by span.

A row is {prompt, response} and one of

    flagged: [[start, end], ...]     half-open character ranges that are wrong
    flags: [0, 1, ...]               one per character
    spans: [[0, 5], ...], flags      spans that tile the response, as on the wire, and one flag per span

Without `spans`, units are the scorer's own tokens, so scorers of different tokenizers are judged on
different units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenreward.eval.answer import Answer
from tokenreward.eval.dataset import Dataset, PromptAs, candidate, prompt_of
from tokenreward.eval.flags import Flags, ranges_flagged
from tokenreward.eval.preference import token_columns, token_judgement
from tokenreward.eval.rows import Row, kind_of
from tokenreward.eval.verdict import Verdict


class Tokens(Dataset):
    """Responses with flags."""

    kind = "tokens"
    noun = "responses"

    def __init__(self, rows: Sequence[Row], prompt_as: PromptAs) -> None:
        super().__init__()
        self._responses = [self._response(row, prompt_as) for row in rows]
        self.num_cases = len(self._responses)

    def judge(self, answers: Sequence[Answer]) -> Verdict:
        """The area under the ROC curve of flagged units: mean over responses, and over all
        units."""
        known = [entry for entry in self._responses if answers[entry[1]].error is None]
        found, examples = token_judgement(known, answers)
        counts = {
            "responses": len(self._responses),
            "judged": len(known),
            "failed": len(self._responses) - len(known),
            "of one kind only": sum(area is None for area in found.areas),
        }
        return Verdict(
            token_columns(found),
            counts,
            classes={"not flagged": found.others, "flagged": found.flagged},
            curve=found.curve,
            curve_title="flagged tokens found by low reward",
            examples={"flagged tokens": examples},
        )

    def _response(self, row: Row, prompt_as: PromptAs) -> tuple[str, int, Flags]:
        prompt, response = prompt_of(row, "prompt", prompt_as), row.text("response")
        spans: dict[str, Any] = {}
        if "flagged" in row.fields:
            if "flags" in row.fields:
                raise row.wrong("flags", "and `flagged` say the same thing: give one of them")
            flags = ranges_flagged(row, "flagged", len(response))
        elif "spans" in row.fields:
            spans = {"spans": _tiling(row, len(response))}
            flags = _span_flags(row, spans["spans"], len(response))
        else:
            flags = Flags(
                np.array(row.flags("flags", num=len(response), of="character"), dtype=np.bool_)
            )
        made = candidate(
            row, prompt, response, field="response", needs_score=False, needs_units=True, **spans
        )
        return row.where, self.add(made), flags


def _span_flags(row: Row, spans: list[list[int]], length: int) -> Flags:
    units = np.array(row.flags("flags", num=len(spans), of="span"), dtype=np.bool_)
    characters = np.zeros(length, dtype=np.bool_)
    for (start, end), flagged in zip(spans, units.tolist(), strict=True):
        characters[start:end] = flagged
    return Flags(characters, units)


def _tiling(row: Row, length: int) -> list[list[int]]:
    """The spans, if they are pairs of integers that tile the response. Raises DataError."""
    value = row.get("spans")
    if not isinstance(value, list) or not value:
        raise row.wrong("spans", f"must be a list of [start, end] spans, got {kind_of(value)}")
    last = 0
    for index, entry in enumerate(value):
        if (
            not isinstance(entry, list)
            or len(entry) != 2
            or not all(type(end) is int for end in entry)
        ):
            raise row.wrong(f"spans[{index}]", f"must be [start, end], got {kind_of(entry)}")
        if entry[0] != last or entry[1] < last:
            raise row.wrong(
                f"spans[{index}]", f"is {entry}, but must start at {last} and not end before it"
            )
        last = entry[1]
    if last != length:
        raise row.wrong(
            "spans",
            f"end at {last}, but the response has {length} characters (Unicode code points)",
        )
    return value
