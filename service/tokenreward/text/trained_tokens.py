"""Compares the tokens that a reward model reads with those of its training, and names the settings
that make them equal.

Training read whole conversations through the chat template. Here a response is read as it is, or as
the template renders it, behind a prompt that the template wrote. Whether that comes to the same
depends on the template, so responses of several shapes are tried. Settings are named only if they
were tried, too: with them each shape has the tokens of training, or is refused as an item. This
module knows no model and no head.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from tokenreward.errors import ItemError
from tokenreward.text.conversation import templated_tokens
from tokenreward.text.tokenizer import Tokenizer

Ids = Int64[np.ndarray, " _"]

# Responses in the shapes in which policies write them and templates rewrite them.
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "It is Paris."
SHAPES = {
    "a plain response": ANSWER,
    "a response that begins with a space": f" {ANSWER}",
    "a response that ends with a line break": f"{ANSWER}\n",
    "a response of several lines": f"{ANSWER}\n\nIt is large.",
    "a response with an empty think block": f"<think>\n\n</think>\n\n{ANSWER}",
}
_SWITCHES = ("enable_thinking", "thinking")  # variables of templates that open a think block
_MAX_SHOWN = 40  # characters of tokens that differ


def advice(
    tokenizer: Tokenizer,
    suffix_text: str | None,
    skipped_id: int | None = None,
    *,
    reads_conversation: bool = False,
) -> str:
    """The end of a line that is told at load: which tokens differ, and the settings with which none
    do. Empty if none do.

    Args:
        tokenizer: The checkpoint's.
        suffix_text: What the settings put after each response.
        skipped_id: The token that the model's class passes over at the end of a row, as padding.
        reads_conversation: Whether responses are read as the template renders them.
    """
    if reads_conversation:
        differing, refused = _differences_of_conversations(tokenizer)
        return "".join(f"; they differ: {each}" for each in differing) + _refusals(refused)
    differing = differences(tokenizer, suffix_text, skipped_id=skipped_id)
    if not differing:
        return ""
    line = f": they differ in {len(differing)} of {len(SHAPES)} shapes of a response "
    return f"{line}({differing[0]}); {remedy(tokenizer, suffix_text, skipped_id=skipped_id)}"


def differences(
    tokenizer: Tokenizer,
    suffix_text: str | None,
    variables: Mapping[str, Any] | None = None,
    *,
    skipped_id: int | None = None,
) -> list[str]:
    """The shapes of a response that, read as it is, has other tokens than in training, each with
    the tokens that differ. Empty if there is no template, or none that renders plain turns.

    Args:
        tokenizer: The checkpoint's.
        suffix_text: What is put after each response.
        variables: Variables of the template that are set over the deployment's.
        skipped_id: As in `advice`. A suffix is read and pooled whatever its last token is.
    """
    result = []
    for name, response in SHAPES.items():
        trained = _trained(tokenizer, response)
        if trained is None:
            continue
        rendered = _trained(tokenizer, response, variables)
        if rendered is None or not np.array_equal(rendered, trained):
            result.append(f"{name}: the variables change more than the prompt")
            continue
        try:
            prompt = tokenizer.prompt_from_messages(
                QUESTION, None, dict(variables or {}), param=None
            )
            is_finished = tokenizer.end_of_turn is not None
            ids, _ = tokenizer.response(response, finished=is_finished, param=None)
        except ItemError as error:
            result.append(f"{name}: {error.message}")
            continue
        ours = np.concatenate([prompt, ids, tokenizer.suffix(suffix_text)])
        if not suffix_text:
            ours = _without_padding(ours, skipped_id)
        trained = _without_padding(trained, skipped_id)
        if not np.array_equal(ours, trained):
            result.append(f"{name}: {_contrast(tokenizer, ours, trained)}")
    return result


def remedy(tokenizer: Tokenizer, suffix_text: str | None, *, skipped_id: int | None = None) -> str:
    """The fewest settings under which every shape of a response has the tokens of training, as the
    end of a sentence; or that no settings do."""
    suffixes = [suffix_text, None, tokenizer.after_end_of_turn or None]
    choices = itertools.product([{}, *_switches(tokenizer)], dict.fromkeys(suffixes))
    # A choice that changes one setting comes before those that change two.
    fewest = sorted(choices, key=lambda each: bool(each[0]) + (each[1] != suffix_text))
    for variables, suffix in fewest:
        if differences(tokenizer, suffix, variables, skipped_id=skipped_id):
            continue
        settings = []
        if variables:
            every = {**tokenizer.template.variables, **variables}
            settings.append(f"`chat_template_kwargs: {_yaml(every)}`")
        if suffix != suffix_text:
            settings.append(f"`suffix_text: {_yaml(suffix)}`")
        return f"if it was trained on its template, set {' and '.join(settings)}"
    differing, refused = _differences_of_conversations(tokenizer)
    if differing or len(refused) == len(SHAPES):
        return (
            "no setting makes them equal: if it was trained on its template, send the token ids of "
            "whole conversations"
        )
    line = "if it was trained on its template, set `scored_text: conversation`"
    if suffix_text:
        line += " and `suffix_text: null`"
    return line + _refusals(refused)


def _switches(tokenizer: Tokenizer) -> list[dict[str, bool]]:
    """Variables that the template reads and that are not set so."""
    source, variables = str(tokenizer.template.source), tokenizer.template.variables
    return [
        {name: value}
        for name, value in itertools.product(_SWITCHES, (False, True))
        if name in source and variables.get(name) is not value
    ]


def _differences_of_conversations(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The shapes of a response that, read as the template renders it, has other tokens than in
    training; and the shapes that cannot be read so, which are refused."""
    differing, refused = [], []
    for name, response in SHAPES.items():
        trained = _trained(tokenizer, response)
        if trained is None:
            continue
        try:
            prompt, ids, _, suffix = templated_tokens(
                tokenizer, QUESTION, response, finished=tokenizer.end_of_turn is not None
            )
        except ItemError as error:
            refused.append(f"{name}: {error.message}")
            continue
        ours = np.concatenate([prompt, ids, suffix])
        if not np.array_equal(ours, trained):
            differing.append(f"{name}: {_contrast(tokenizer, ours, trained)}")
    return differing, refused


def _refusals(refused: Sequence[str]) -> str:
    if not refused:
        return ""
    return f"; {len(refused)} of {len(SHAPES)} shapes of a response are then refused ({refused[0]})"


def _trained(
    tokenizer: Tokenizer, response: str, variables: Mapping[str, Any] | None = None
) -> Ids | None:
    """The tokens of a whole conversation as the template writes it; None if it does not."""
    turns = [*QUESTION, {"role": "assistant", "content": response}]
    return tokenizer.templated(turns, variables)


def _without_padding(ids: Ids, skipped_id: int | None) -> Ids:
    read = np.flatnonzero(ids != skipped_id)
    return ids[: read[-1] + 1] if len(read) else ids


def _yaml(value: Any) -> str:
    """A setting's value on one line. A text is in double quotes: in single ones YAML knows no line
    break."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_yaml(entry)}' for name, entry in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def _contrast(tokenizer: Tokenizer, ours: Ids, trained: Ids) -> str:
    """Where two rows differ, as text."""
    num_same = _num_common(ours, trained)
    num_behind = _num_common(ours[num_same:][::-1], trained[num_same:][::-1])
    texts = []
    for row in (ours, trained):
        text = tokenizer.text(row[num_same : len(row) - num_behind])
        texts.append(repr(text[:_MAX_SHOWN]))
    return f"{texts[0]} where the template has {texts[1]}"


def _num_common(one: Ids, other: Ids) -> int:
    """How many entries two rows have in common at their beginning."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
