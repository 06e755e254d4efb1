"""Kind `tokens`: responses with what is wrong in them, character by character or span by span.

A row is {prompt, response} and one of

    flagged: [[start, end], ...]     half-open character ranges that are wrong
    flags: [0, 1, ...]               one per character
    spans: [[0, 5], ...], flags      spans that tile the response, as on the wire; a flag per span

Without `spans`, units are the scorer's own tokens, so scorers of different tokenizers are judged on
different units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import PromptAs, candidate, prompt_of
from tokenreward.eval.dataset import Dataset, have_answers
from tokenreward.eval.kinds.flags import CURVE_TITLE, FlaggedResponse, judge_flags, range_flags
from tokenreward.eval.outcome import Judgement
from tokenreward.eval.rows import DataRow


class Tokens(Dataset):
    """Responses with flags."""

    kind = "tokens"
    noun = "responses"

    def __init__(self, rows: Sequence[DataRow], prompt_as: PromptAs) -> None:
        super().__init__()
        self._responses = [self._response(row, prompt_as) for row in rows]
        self.num_cases = len(self._responses)

    def judge(self, answers: Sequence[CandidateAnswer]) -> Judgement:
        """The area under the ROC curve of flagged units: its mean over responses, and the area over
        all units."""
        complete = [r for r in self._responses if have_answers([r.candidate], answers)]
        tokens = judge_flags(complete, answers)
        counts = {
            "responses": self.num_cases,
            "judged": len(complete),
            "failed": self.num_cases - len(complete),
            "of one kind only": sum(area is None for area in tokens.areas),
        }
        return Judgement(
            tokens.columns,
            counts,
            classes={"not flagged": tokens.others, "flagged": tokens.flagged},
            curve=tokens.curve,
            curve_title=CURVE_TITLE,
            examples={"flagged tokens": tokens.examples},
        )

    def _response(self, row: DataRow, prompt_as: PromptAs) -> FlaggedResponse:
        prompt, response = prompt_of(row, "prompt", prompt_as), row.text("response")
        spans, units = None, None
        if "flagged" in row.fields:
            if "flags" in row.fields:
                raise row.wrong("flags", "and `flagged` say the same thing: give one of them")
            characters = range_flags(row, "flagged", len(response))
        elif "spans" in row.fields:
            spans = _tiling_spans(row, len(response))
            units = np.array(row.flags("flags", num=len(spans), of="span"), dtype=np.bool_)
            characters = np.repeat(units, [end - start for start, end in spans])
        else:
            flags = row.flags("flags", num=len(response), of="character")
            characters = np.array(flags, dtype=np.bool_)
        needs = {"needs_score": False, "needs_units": True}
        new = candidate(row, prompt, response, field="response", spans=spans, **needs)
        return FlaggedResponse(row.where, self.add(new), characters, units)


def _tiling_spans(row: DataRow, num_characters: int) -> list[list[int]]:
    """The row's spans. Raises DataError if they do not tile the response."""
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
