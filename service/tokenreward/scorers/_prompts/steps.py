"""The row that a process reward model reads: the response cut into steps, with a tag behind each
step where its score is read.

    qwen           prompt, step, tag, step, tag, ...
                   The prompt is the sample's own. Each step is tokenised alone, without the white
                   space around it. The tag is one token (Zhang et al. 2025, 2501.07301, and their
                   model card).
    math_shepherd  problem + " " + step + tag + "\\n" + step + tag + ...
                   All of it is tokenised as one text (Wang et al. 2023, 2312.08935).
    skywork        BOS, problem + "\\n", piece, tag, piece, tag, ...
                   Each piece between separators is tokenised alone, blank lines included. The tag
                   is the last token of its text (Skywork-o1-Open-PRM's own inference code).

The problem is a raw prompt, or the text of the one user message: `math_shepherd` and `skywork` know
no system message. Prompt ids are read as they are. `math_shepherd` can read them only where they
are what their text tokenises to.

A step runs to the start of the next step, so the separator belongs to the step in front of it.
Pieces of white space alone are no steps. A token belongs to the step that holds its last character,
and a final end-of-turn to the last step; that end-of-turn is not read, because no score stands
behind it. A tag's place is known because this module put it there. A tag that the response itself
spells is text like any other. This module knows no model and no scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from tokenreward.alignment import owners
from tokenreward.contract import Sample, TokenizerView
from tokenreward.errors import EmptyPrompt, EmptyResponse, UnsupportedText

LayoutName = Literal["qwen", "math_shepherd", "skywork"]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """A format of steps.

    Attributes:
        name: The format.
        separator: The text that ends a step of the response.
        tag: The text that is read behind a step.
        system: For `qwen`: the system message of conversations that have none.
    """

    name: LayoutName
    separator: str
    tag: str
    system: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """A row of k steps.

    Attributes:
        ids: The tokens to read, up to the last tag.
        tags: Where each step's tag stands in `ids`.
        step_of: The step of each response token. It never decreases, and every step has a token.
    """

    ids: Int64[np.ndarray, " n"]
    tags: Int64[np.ndarray, " k"]
    step_of: Int64[np.ndarray, " r"]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the response between separators, from `start` on."""

    text: str
    start: int

    @property
    def is_step(self) -> bool:
        return bool(self.text.strip())


def step_row(sample: Sample, layout: StepLayout) -> StepRow:
    """The row that holds a sample's steps. It is made once, in `rows`, and kept for `score`.

    Raises:
        EmptyResponse: The response has no step.
        UnsupportedText: The format cannot be made of these texts or ids.
        EmptyPrompt: There is nothing before the response, and no BOS.
        SequenceTooLong: The request's tags and system messages are too much text.
    """
    if layout not in sample.memo:
        sample.memo[layout] = _step_row(sample, layout)
    row: StepRow = sample.memo[layout]
    return row


def _step_row(sample: Sample, layout: StepLayout) -> StepRow:
    text, ends = _response(sample)
    pieces = _pieces(text, layout.separator)
    steps = [piece for piece in pieces if piece.is_step]
    if not steps:
        raise EmptyResponse("there is no step to score, only white space", param="response")
    # The tag and the system message are sent once and written for every step and every item.
    sample.budget.spend(len(layout.tag) * len(steps) + len(layout.system or ""))
    step_of = _step_of(steps, ends, sample, length=len(text))
    if layout.name == "math_shepherd":
        return StepRow(*_as_one_text(sample, steps, layout), step_of)
    if layout.name == "skywork":
        return StepRow(*_line_by_line(sample, pieces, layout), step_of)
    texts = [step.text.strip() for step in steps]
    tag = tag_of(layout, sample.tokenizer)
    return StepRow(*_joined(sample, _chat(sample, layout), texts, tag), step_of)


def tag_of(layout: StepLayout, tokenizer: TokenizerView) -> Int64[np.ndarray, " 1"]:
    """The last token of the tag, where the scores are read.

    Raises:
        UnsupportedText: The tag of `qwen` is not one token, or a tag cannot be tokenised.
    """
    if layout.name != "qwen":
        return tokenizer.pieces(layout.tag, param="step_tag")[0][-1:]
    tag = tokenizer.single(layout.tag)
    if tag is None:
        raise UnsupportedText(
            f"the step tag {layout.tag[:64]!r} is not one token of this tokenizer: is it the "
            "`layout` of this checkpoint, and its `step_tag`?"
        )
    return np.asarray([tag], dtype=np.int64)


def _pieces(text: str, separator: str) -> list[_Piece]:
    """The stretches of a text between separators."""
    pieces, start = [], 0
    for part in text.split(separator):
        pieces.append(_Piece(part, start))
        start += len(part) + len(separator)
    return pieces


def _step_of(
    steps: Sequence[_Piece], ends: Int64[np.ndarray, " b"], sample: Sample, *, length: int
) -> Int64[np.ndarray, " r"]:
    """The step of each response token.

    Args:
        steps: The steps in order, at least one.
        ends: Where the characters of each token end, without a final end-of-turn.
        sample: The sample.
        length: Characters of the response.

    Raises:
        UnsupportedText: A step ends within the token that another step ends in.
    """
    # The first step begins with the response, every other step where its text does.
    begins = [0, *(step.start for step in steps[1:])]
    spans = np.stack([begins, [*begins[1:], length]], axis=1)
    step_of = owners(ends, spans, num_appended=len(sample.response_ids) - len(ends))
    tokenless = np.setdiff1d(np.arange(len(steps)), step_of)
    if len(tokenless):
        raise UnsupportedText(
            f"step {tokenless[0]} (from 0) has no token to itself: another step ends in the token "
            "that it ends in. Use another `separator`",
            param="response",
        )
    return step_of


def _response(sample: Sample) -> tuple[str, Int64[np.ndarray, " b"]]:
    """The response without a final end-of-turn, and where the characters of its tokens end.

    Raises:
        UnsupportedText: The tokens have no known ends in a text.
    """
    ids = sample.response_ids[:-1] if sample.terminal else sample.response_ids
    text = sample.item.response
    if not isinstance(text, str):
        return _text_of(sample, ids, field="response")
    if sample.ends is None:
        raise UnsupportedText("this tokenizer cannot say where tokens end", param="response")
    ends = sample.ends[: len(ids)]
    if len(sample.ends) > len(ids):  # the text spells its end-of-turn
        text = text[: ends[-1] if len(ends) else 0]
    return text, ends


def _text_of(
    sample: Sample, ids: Int64[np.ndarray, " n"], *, field: str
) -> tuple[str, Int64[np.ndarray, " n"]]:
    """The text of ids, and where the characters of each id end.

    Raises:
        UnsupportedText: The ids are not what their text tokenises to.
    """
    text = sample.tokenizer.text(ids)
    again, ends = sample.tokenizer.pieces(text, param=field)
    if ends is None or not np.array_equal(again, ids):
        raise UnsupportedText(
            "these ids are not what their text tokenises to, and this format is made of text: send "
            "text (with `spans` for rewards per token of yours)",
            param=field,
        )
    return text, ends


def _line_by_line(
    sample: Sample, pieces: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The ids and tags of `skywork`. Blank lines are read and tagged; no score is read there."""
    is_step = np.array([piece.is_step for piece in pieces])
    stop = int(np.flatnonzero(is_step)[-1]) + 1
    tag = tag_of(layout, sample.tokenizer)
    texts = [piece.text for piece in pieces[:stop]]
    ids, tags = _joined(sample, _opening(sample), texts, tag)
    return ids, tags[is_step[:stop]]


def _joined(
    sample: Sample,
    prompt: Int64[np.ndarray, " p"],
    texts: Sequence[str],
    tag: Int64[np.ndarray, " g"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The prompt, then each text tokenised alone with the tag behind it; and where the tags are."""
    parts = [prompt]
    for text in texts:
        parts += [sample.tokenizer.pieces(text, param="response")[0], tag]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts), ends[2::2] - 1


def _as_one_text(
    sample: Sample, steps: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The ids and tags of `math_shepherd`."""
    text, tag_ends = f"{_problem(sample)} ", []
    for index, step in enumerate(steps):
        text += ("\n" if index else "") + step.text.strip() + layout.tag
        tag_ends.append(len(text))
    alone, ends = sample.tokenizer.pieces(text, param="response")
    ids = sample.tokenizer.with_bos(alone)
    # Several tokens can end with the tag's last character, if they are its bytes. The last of them
    # has read the whole character.
    tags = np.empty(0) if ends is None else np.searchsorted(ends, tag_ends, side="right") - 1
    if ends is None or not np.array_equal(ends[tags], tag_ends):
        raise UnsupportedText(
            f"this tokenizer lets no token end with the step tag {layout.tag[:64]!r}",
            param="response",
        )
    return ids, tags + len(ids) - len(alone)


def _chat(sample: Sample, layout: StepLayout) -> Int64[np.ndarray, " p"]:
    """The sample's prompt; messages without a system message get the layout's."""
    item = sample.item
    if item.messages is None or item.messages[0]["role"] == "system" or layout.system is None:
        return sample.prompt_ids
    messages = [{"role": "system", "content": layout.system}, *item.messages]
    return sample.tokenizer.prompt_from_messages(
        messages, item.tools, item.chat_template_kwargs, param="prompt"
    )


def _opening(sample: Sample) -> Int64[np.ndarray, " p"]:
    """BOS, the problem and a line break; a prompt of ids is taken to hold all of it already."""
    if not isinstance(sample.item.prompt, str) and sample.item.messages is None:
        return sample.prompt_ids
    problem = sample.tokenizer.pieces(f"{_problem(sample)}\n", param="prompt")[0]
    try:
        bos = sample.tokenizer.prompt_from_text("", param="prompt")  # an empty prompt is BOS alone
    except EmptyPrompt:
        return problem
    return problem if np.array_equal(problem[:1], bos) else np.concatenate([bos, problem])


def _problem(sample: Sample) -> str:
    """The question as text.

    Raises:
        UnsupportedText: The prompt is a longer conversation, or ids that are not what their text
            tokenises to.
    """
    if isinstance(sample.item.prompt, str):
        return sample.item.prompt
    if sample.item.messages is None:
        return _text_of(sample, sample.prompt_ids, field="prompt")[0]
    turns = [message for message in sample.item.messages if message["role"] != "system"]
    question = None
    if [turn["role"] for turn in turns] == ["user"]:
        question = turns[0].get("content")
    if not isinstance(question, str):
        raise UnsupportedText(
            "this format reads one user message of text, or a raw prompt", param="prompt"
        )
    return question
