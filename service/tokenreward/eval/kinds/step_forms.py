"""Reads solutions that are cut into steps, in the forms in which data sets have them.

    {problem, steps: [...], label}                          ProcessBench: the first wrong step from
                                                            0, or -1 if there is none
    {prompt, completions: [...], labels: [true, ...]}       TRL's stepwise supervision
    {question: {problem}, label: {steps: [...]}}            PRM800K: a rating of each step, of which
                                                            -1 is wrong
    {input, label}                                          Math-Shepherd: ` ки` behind each step of
                                                            the input, `+` or `-` in its place
    {modified_question, modified_process, error_steps}      PRMBench: wrong steps, counted from 1

It does not know what becomes of the solutions.
"""

from __future__ import annotations

import re

from tokenreward.eval.candidate import prompt_of
from tokenreward.eval.conversation import Prompt, PromptAs, kind_of
from tokenreward.eval.rows import DataRow

Solution = tuple[Prompt, str, list[str], list[bool]]
"""The prompt, the field that holds the steps, their texts, and which of them are wrong."""

_SHEPHERD_TAG = "ки"
_FIRST_STEP = re.compile(r"\s(?=Step 1\b)")


def form_of(row: DataRow) -> str | None:
    """Whose form a row has; None if it has no steps."""
    fields, form = row.fields, None
    if "original_process" in fields or "modified_process" in fields:
        form = "PRMBench's `modified_process`"
    elif "steps" in fields and "label" in fields:
        form = "ProcessBench's `steps` and `label`"
    elif isinstance(fields.get("completions"), list) and "labels" in fields:
        # Lists of 0 and 1 label whole responses as well.
        labels = row.scalar("labels")
        if isinstance(labels, list) and all(isinstance(label, bool) for label in labels):
            form = "TRL's `completions` and `labels`"
    elif isinstance(fields.get("question"), dict) and "label" in fields:
        form = "PRM800K's `question` and `label`"
    elif _SHEPHERD_TAG in str(fields.get("input")) and isinstance(fields.get("label"), str):
        form = "Math-Shepherd's `input` and `label`"
    return form


def is_prm_bench(row: DataRow) -> bool:
    """Whether a row is one of PRMBench's."""
    return "modified_process" in row.fields


def solution_of(row: DataRow, prompt_as: PromptAs) -> Solution | None:
    """The solution of a row, in the form that `form_of` says, else ProcessBench's; None if it is
    not known which of its steps is wrong.

    Args:
        row: The row.
        prompt_as: What a problem that is text becomes: a user message, or itself.

    Raises:
        EvalError: The row is not what a row of its form should be.
    """
    form = form_of(row) or ""
    if form.startswith("TRL") or (not form and "completions" in row.fields):
        texts = row.texts("completions")
        right = row.flags("labels", num=len(texts), of="completion")
        prompt = prompt_of(row, "prompt", prompt_as)
        return prompt, "completions", texts, [not flag for flag in right]
    if form.startswith("PRM800K"):
        problem, texts, ratings = _prm800k(row)
        field = "label.steps"
        # Behind a step that nobody rated, nothing is known, and a solution that the labeller gave
        # up, or whose problem is broken, is not right because none of its steps is wrong.
        num_rated = ratings.index(None) if None in ratings else len(ratings)
        wrong = [rating == -1 for rating in ratings[:num_rated]]
        is_over = row.get("label").get("finish_reason") not in ("give_up", "bad_problem")
        if not any(wrong) and not (is_over and num_rated == len(ratings)):
            return None
        texts = texts[:num_rated]
    elif form.startswith("Math-Shepherd"):
        problem, texts, wrong = _math_shepherd(row)
        field = "input"
    elif form.startswith("PRMBench"):
        problem, field = row.text("modified_question"), "modified_process"
        texts = row.texts(field)
        errors = row.integers("error_steps", least=1, most=len(texts))
        wrong = [place + 1 in errors for place in range(len(texts))]
    else:
        problem, field, texts = row.text("problem"), "steps", row.texts("steps")
        labels = row.integers("label", least=-1, most=len(texts) - 1)
        if len(labels) != 1:
            message = f"must be the number of a step, got {kind_of(row.scalar('label'))}"
            raise row.wrong("label", message)
        wrong = [place == labels[0] for place in range(len(texts))]
    messages: Prompt = [{"role": "user", "content": problem}]
    return problem if prompt_as == "raw" else messages, field, texts, wrong


def _prm800k(row: DataRow) -> tuple[str, list[str], list[int | None]]:
    """The problem, and of each step the completion that was gone on with, else the first one.

    A step's rating is -1, 0 or 1; a step that the labeller wrote has 1, and one that nobody could
    rate None.
    """
    problem, label = row.get("question").get("problem"), row.get("label")
    if not isinstance(problem, str):
        raise row.wrong("question.problem", f"must be a string, got {kind_of(problem)}")
    entries = label.get("steps") if isinstance(label, dict) else None
    if not isinstance(entries, list) or not entries:
        raise row.wrong("label.steps", f"must be a list of steps, got {kind_of(entries)}")
    texts: list[str] = []
    ratings: list[int | None] = []
    for place, entry in enumerate(entries):
        path = f"label.steps[{place}]"
        if not isinstance(entry, dict):
            raise row.wrong(path, f"must be an object, got {kind_of(entry)}")
        choice = entry.get("human_completion")
        rating: int | None = 1
        completions = entry.get("completions")
        if choice is None and isinstance(completions, list) and completions:
            number = entry.get("chosen_completion") or 0
            is_place = isinstance(number, int) and 0 <= number < len(completions)
            choice = completions[number] if is_place else None
            rating = choice.get("rating") if isinstance(choice, dict) else None
        text = choice.get("text") if isinstance(choice, dict) else choice
        if not isinstance(text, str):
            raise row.wrong(f"{path}.completions", "must have a completion with a text")
        texts.append(text)
        ratings.append(rating)
    return problem, texts, ratings


def _math_shepherd(row: DataRow) -> tuple[str, list[str], list[bool]]:
    """The problem, the steps and their marks. The label is the input with a mark for each tag."""
    text, label = row.text("input"), row.text("label")
    *pieces, rest = text.split(_SHEPHERD_TAG)
    wrong, start = [], 0
    for piece in pieces:
        mark = label[start + len(piece) : start + len(piece) + 1]
        if label[start : start + len(piece)] != piece or mark not in ("+", "-"):
            raise row.wrong("label", f"is not `input` with + or - in place of `{_SHEPHERD_TAG}`")
        wrong.append(mark == "-")
        start += len(piece) + 1
    if rest.strip() or not pieces:
        raise row.wrong("input", f"must end in `{_SHEPHERD_TAG}`")
    problem, *first = _FIRST_STEP.split(pieces[0], maxsplit=1)
    if not first:
        raise row.wrong("input", "has no `Step 1`, where the problem would end")
    return problem.strip(), [piece.strip() for piece in (first[0], *pieces[1:])], wrong
