"""Reads pairs of a better and a worse response, in the forms in which data sets have them.

    {chosen, rejected}, and the like                    the fields say which is better
    {response_1, response_2, preference_strength}       HelpSteer2: below 0 the first is better
    {response1, response2, overall_preference}          HelpSteer3: the same
    {response_1, response_2, winner}                    PPE: `model_a`, `model_b`, or a tie
    {response_A, response_B, label}                     JudgeBench: `A>B` or `B>A`
    {history, human_ref_A, human_ref_B, labels}         SHP: 1 if A is better
    {conversation_a, conversation_b, winner}            Chatbot Arena, MT-Bench
    {response_a, response_b, winner_model_a}            LMSYS's 55k: lists of turns, as JSON
    {response_0, response_1, better_response_id}        PKU-SafeRLHF
    {question: {full_text}, answer_0, answer_1, score_0, score_1}     WebGPT's comparisons
    {output_1, output_2, preference} or {..., label}    AlpacaFarm, LLMBar: 1 or 2

A pair of which neither is better has no verdict. It does not know what becomes of the pairs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tokenreward.eval.conversation import kind_of
from tokenreward.eval.rows import DataRow

PAIR_FIELDS = (
    ("full_chosen", "full_rejected"),
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
)
"""The fields of the better and of the worse response. Step-DPO's rows have the whole solutions
beside the steps that differ; with `messages`, as ms-swift has them, the worse response may stand
alone."""

VERDICTS = (
    ("response_1", "response_2", "preference_strength"),
    ("response1", "response2", "overall_preference"),
    ("response_1", "response_2", "winner"),
    ("response_a", "response_b", "winner"),
    ("response_a", "response_b", "winner_model_a"),
    ("response_A", "response_B", "label"),
    ("human_ref_A", "human_ref_B", "labels"),
    ("conversation_a", "conversation_b", "winner"),
    ("response_0", "response_1", "better_response_id"),
    ("answer_0", "answer_1", "score_1"),
    ("output_1", "output_2", "preference"),
    ("output_1", "output_2", "label"),
)
"""Two responses, and the field that says which of them is better."""

# What a verdict in words says: +1 for the first response, -1 for the second, 0 for neither.
_WORDS = {
    "model_a": 1,
    "a": 1,
    "a>b": 1,
    "a>>b": 1,
    "model_b": -1,
    "b": -1,
    "b>a": -1,
    "b>>a": -1,
    "a=b": 0,
    "tie": 0,
    "tie (bothbad)": 0,
    "tie (both bad)": 0,
    "both_bad": 0,
}
# What a verdict of 0, 1 or 2 says.
_NUMBERS: dict[str, dict[float, int]] = {
    "labels": {1: 1, 0: -1},
    "label": {1: 1, 2: -1},
    "winner_model_a": {1: 1, 0: -1},
    "better_response_id": {0: 1, 1: -1},
    "preference": {1: 1, 2: -1, 0: 0, 1.5: 0},
}


def named_pair(row: DataRow) -> tuple[str, str] | None:
    """The fields of a row whose names say which response is better; None if it has none."""
    for pair in PAIR_FIELDS:
        if all(row.fields.get(name) is not None for name in pair):
            return pair
    return next((pair for pair in PAIR_FIELDS if row.fields.keys() >= set(pair)), None)


def labelled_pair(row: DataRow) -> tuple[str, str, str] | None:
    """The fields of two responses and of the verdict on them; None if a row has none."""
    for fields in VERDICTS:
        if all(row.fields.get(name) is not None for name in fields):
            return fields
    return None


def pair_of(row: DataRow) -> tuple[DataRow, str, str] | None:
    """The pair of a row.

    Returns:
        The row with its responses as `DataRow.conversation` reads them, and the fields of the
        better and of the worse response. None if neither is better.

    Raises:
        EvalError: The verdict is none.
    """
    pair = named_pair(row)
    if pair is not None:
        return row, *pair
    fields = labelled_pair(row)
    if fields is None:
        return row, *PAIR_FIELDS[1]  # the row lacks the usual fields, and is refused by their names
    first, second, label = fields
    sign = _sign(row, label)
    if sign == 0:
        return None
    row = replace(row, fields=_plain_fields(row, first, second))
    return (row, first, second) if sign > 0 else (row, second, first)


def _sign(row: DataRow, label: str) -> int:
    """Above 0 if the first response of a row is better, below 0 if the second, 0 if neither."""
    value = row.scalar(label)
    if label == "score_1":
        return _compared(_number(row, "score_0"), _number(row, label))
    if label in ("preference_strength", "overall_preference"):
        return _compared(0, _number(row, label))
    if label == "winner_model_a" and row.scalar("winner_model_b") == value:
        return 0
    if label in _NUMBERS and not isinstance(value, str):
        signs: dict[Any, int] = dict(_NUMBERS[label])
    else:
        signs, value = dict(_WORDS), str(value).strip().lower()
    if isinstance(value, (list, dict)) or value not in signs:
        choices = ", ".join(map(str, signs))
        raise row.wrong(label, f"must be one of {choices}, got {kind_of(row.scalar(label))}")
    return signs[value]


def _compared(first: float, second: float) -> int:
    return (first > second) - (first < second)


def _number(row: DataRow, field: str) -> float:
    value = row.scalar(field)
    if not isinstance(value, (int, float)):
        raise row.wrong(field, f"must be a number, got {kind_of(value)}")
    return value


def _plain_fields(row: DataRow, first: str, second: str) -> dict[str, Any]:
    """The fields of a row, with prompt and responses as text or messages."""
    fields = dict(row.fields)
    question = fields.get("question")
    if first == "answer_0" and isinstance(question, dict):
        fields["question"] = question.get("full_text")
    prompts = _turns(fields.get("prompt"))
    if first == "response_a" and prompts is not None:
        # LMSYS's turns of the user in one list, and those of each model in another.
        fields["prompt"] = None
        for name in (first, second):
            replies = _turns(fields[name])
            if replies is None or len(replies) != len(prompts):
                raise row.wrong(name, f"must hold {len(prompts)} texts, one for each of `prompt`")
            messages = []
            for prompt, reply in zip(prompts, replies, strict=True):
                messages.append({"role": "user", "content": prompt})
                messages.append({"role": "assistant", "content": reply})
            fields[name] = messages
    return fields


def _turns(value: Any) -> list[str] | None:
    """A list of texts, or one that a JSON text holds; None if it is neither."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    is_list = isinstance(value, list) and bool(value)
    return value if is_list and all(isinstance(text, str | None) for text in value) else None
