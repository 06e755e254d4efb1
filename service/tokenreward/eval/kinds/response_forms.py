"""Reads prompts with several responses of known worth, in the forms in which data sets have them.

    {prompt, responses, labels}                   right or wrong; the responses may be `completions`
    {question, ground_truth, and one              GSM8K's example_model_solutions.jsonl
     {is_correct, solution} per model}
    {prompt, responses, scores} or {..., ranks}   the best are right: of the highest score, or the
                                                  lowest rank
    {prompt, response_1, ..., scores}             PPE's best of k
    {prompt, answers: [{answer, rank}]}           Nectar
    {instruction, completions:
     [{response, overall_score}]}                 UltraFeedback

Scores that are all 0 or 1 are labels. It does not know what becomes of the responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenreward.eval.conversation import kind_of
from tokenreward.eval.rows import DataRow

Responses = list[tuple[str, str, bool]]
"""Of each response: its path in the row, its text, and whether it is right."""

# Lists of objects: whose they are, the keys of text and worth, and the sign of the worth.
_OBJECTS = {
    "answers": ("Nectar", "answer", "rank", -1),
    "completions": ("UltraFeedback", "response", "overall_score", 1),
}
_WORTHS = {"labels": 1, "scores": 1, "ranks": -1}


def response_form(row: DataRow) -> str | None:
    """What a row has that makes it one of these forms; None if it has nothing."""
    fields = row.fields
    solutions = [each for each in fields.values() if isinstance(each, dict)]
    if {"question", "ground_truth"} <= fields.keys() and any("is_correct" in s for s in solutions):
        return "GSM8K's `question` and `ground_truth`"
    for name, (owner, text, worth, _) in _OBJECTS.items():
        if _are_objects(fields.get(name)) and {text, worth} <= fields[name][0].keys():
            return f"{owner}'s `{name}` with `{worth}`"
    worth_field = _worth_field(row)
    if worth_field is None:
        return None
    for name in ("responses", "completions"):
        if _is_texts(fields.get(name)):
            return f"`{name}` and `{worth_field}`"
    if "response_1" in fields and isinstance(row.scalar(worth_field), list):
        return f"`response_1`, `response_2`, ... and `{worth_field}`"
    return None


def responses_of(row: DataRow) -> Responses:
    """The responses of a row; none if all of them are equally good, by their scores or ranks.

    Raises:
        EvalError: The row is of no such form, or not what a row of its form should be.
    """
    fields = row.fields
    form = response_form(row)
    is_gsm8k = {"question", "ground_truth"} <= fields.keys() and "responses" not in fields
    if is_gsm8k and (form is None or form.startswith("GSM8K")):
        return _gsm8k_responses(row)
    for name, (_, text, worth, sign) in _OBJECTS.items():
        if _are_objects(fields.get(name)):
            return _object_responses(row, name, (text, worth), sign)
    name = "responses"
    if name not in fields and _is_texts(fields.get("completions")):
        name = "completions"
    if name not in fields and "response_1" in fields:
        paths = [f"response_{number}" for number in range(1, len(fields) + 1)]
        paths = [path for path in paths if path in fields]
        texts = [row.text(path) for path in paths]
    else:
        texts = row.texts(name)
        paths = [f"{name}[{place}]" for place in range(len(texts))]
    worth_field = _worth_field(row) or "labels"
    if worth_field == "labels":
        rights = row.flags("labels", num=len(texts), of="response")
    else:
        worths = row.scalar(worth_field)
        if not isinstance(worths, list) or len(worths) != len(texts):
            message = f"must be a list of {len(texts)} numbers, got {kind_of(worths)}"
            raise row.wrong(worth_field, message)
        rights = _best(row, worth_field, worths, _WORTHS[worth_field])
    return list(zip(paths, texts, rights, strict=True)) if rights else []


def _best(row: DataRow, path: str, worths: Sequence[Any], sign: int) -> list[bool]:
    """Which responses are right: those of worth 1 where all are 0 or 1, else the best.

    Args:
        row: The row, for messages.
        path: Where the worths stand.
        worths: A number of each response.
        sign: -1 if the lowest number is the best.

    Returns:
        One entry per response; none if all are equally good.
    """
    for worth in worths:
        # NaN, a number that is missing, is neither better nor worse than another.
        if not isinstance(worth, (int, float)) or worth != worth:
            raise row.wrong(path, f"must be numbers, got {kind_of(worth)}")
    if sign > 0 and all(worth in (0, 1) for worth in worths):
        return [bool(worth) for worth in worths]
    best = max(sign * worth for worth in worths)
    rights = [sign * worth == best for worth in worths]
    return [] if all(rights) else rights


def _object_responses(row: DataRow, name: str, keys: tuple[str, str], sign: int) -> Responses:
    """The responses of a list of objects, each with a text and a number."""
    text_key, worth_key = keys
    paths, texts, worths = [], [], []
    for place, entry in enumerate(row.get(name)):
        text = entry.get(text_key) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise row.wrong(f"{name}[{place}].{text_key}", "must be a string")
        paths.append(f"{name}[{place}].{text_key}")
        texts.append(text)
        worths.append(entry.get(worth_key))
    rights = _best(row, f"{name}[].{worth_key}", worths, sign)
    return list(zip(paths, texts, rights, strict=True)) if rights else []


def _gsm8k_responses(row: DataRow) -> Responses:
    """Every field is a model's solution but question and ground truth."""
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
    return responses


def _worth_field(row: DataRow) -> str | None:
    """The field that says how good the responses are."""
    return next((name for name in _WORTHS if row.fields.get(name) is not None), None)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
