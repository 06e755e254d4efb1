"""How a process reward model reads a response: cut into steps, each followed by a tag that its
score is read at.

    qwen           the sample's own prompt, then step + tag, step + tag, ...: each step without the white space around
                   it and tokenised alone, the tag one token (Zhang et al. 2025, 2501.07301, and their model card)
    math_shepherd  problem + " " + step + tag + "\\n" + step + tag, tokenised as one text (Wang et al. 2023, 2312.08935)
    skywork        BOS, problem + "\\n", then each piece tokenised alone and the last token of the tag, blank lines and
                   all (Skywork-o1-Open-PRM's own inference code)

The problem is a raw prompt, or the text of the one user message: these two formats know no system
message. Prompt ids are read as they are, which `math_shepherd` can do only where they are what
their text tokenises to.

A step runs to the start of the next one, so what separates them is the earlier one's; pieces of
white space alone are no steps. A token belongs to the step that holds its last character, a final
end-of-turn to the last step; that end-of-turn is not read, for no score stands behind it. Tags are
found by where they were put, never by looking for them: one that the response spells itself is text
like any other. This module knows no model and no scores.
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
    """A format: its name, what ends a step of the response, the tag read behind one, and (`qwen`)
    the system message of messages that have none."""

    name: LayoutName
    separator: str
    tag: str
    system: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """What is read: `ids` [n], up to the last tag; `tags` [k]: where each step's tag stands in
    them; `step_of` [r]: the step of each response token, never decreasing, every step there."""

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
    """The row that holds a sample's steps. It is made once: `rows` reads it, and then `score`.

    Raises:
        EmptyResponse: The response has no step.
        UnsupportedText: The format cannot be made of these texts or ids.
        EmptyPrompt: There is nothing before the response, and no BOS.
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
    step_of = _step_of(steps, ends, sample, length=len(text))
    if layout.name == "math_shepherd":
        return StepRow(*_as_one_text(sample, steps, layout), step_of)
    if layout.name == "skywork":
        return StepRow(*_line_by_line(sample, pieces, layout), step_of)
    return StepRow(*_step_by_step(sample, steps, layout), step_of)


def tag_of(layout: StepLayout, tokenizer: TokenizerView) -> Int64[np.ndarray, " 1"]:
    """The token that the scores are read at; `math_shepherd`'s need not be one. Raises
    UnsupportedText."""
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
    pieces, start = [], 0
    for part in text.split(separator):
        pieces.append(_Piece(part, start))
        start += len(part) + len(separator)
    return pieces


def _step_of(
    steps: Sequence[_Piece], ends: Int64[np.ndarray, " b"], sample: Sample, *, length: int
) -> Int64[np.ndarray, " r"]:
    # What stands before the first step is the first's; every other begins where its text does.
    begins = [0, *(step.start for step in steps[1:])]
    spans = np.stack([begins, [*begins[1:], length]], axis=1)
    step_of = owners(ends, spans, num_appended=len(sample.response_ids) - len(ends))
    without = np.setdiff1d(np.arange(len(steps)), step_of)
    if len(without):
        raise UnsupportedText(
            f"step {without[0]} (from 0) has no token to itself: another step ends in the token "
            "that it ends in. Use another `separator`",
            param="response",
        )
    return step_of


def _response(sample: Sample) -> tuple[str, Int64[np.ndarray, " b"]]:
    """The response without a final end-of-turn, and where its tokens' characters end. Raises
    UnsupportedText."""
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
    """The text of ids, and where each one's characters end, if they are what the text tokenises
    to."""
    text = sample.tokenizer.text(ids)
    again, ends = sample.tokenizer.pieces(text, param=field)
    if ends is None or not np.array_equal(again, ids):
        raise UnsupportedText(
            "these ids are not what their text tokenises to, and this format is made of text: send "
            "text (with `spans` for rewards per token of yours)",
            param=field,
        )
    return text, ends


def _step_by_step(
    sample: Sample, steps: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    tag = tag_of(layout, sample.tokenizer)
    return _joined(sample, _chat(sample, layout), [step.text.strip() for step in steps], tag)


def _line_by_line(
    sample: Sample, pieces: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    last_step = max(index for index, piece in enumerate(pieces) if piece.is_step)
    read = pieces[: last_step + 1]
    tag = tag_of(layout, sample.tokenizer)
    ids, tags = _joined(sample, _opening(sample), [piece.text for piece in read], tag)
    return ids, tags[[piece.is_step for piece in read]]


def _joined(
    sample: Sample,
    prompt: Int64[np.ndarray, " p"],
    texts: Sequence[str],
    tag: Int64[np.ndarray, " g"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The prompt, then each text tokenised alone and the tag behind it; and where the tags end."""
    parts = [prompt]
    for text in texts:
        parts += [sample.tokenizer.pieces(text, param="response")[0], tag]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts), ends[2::2] - 1


def _as_one_text(
    sample: Sample, steps: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    text, tag_ends = f"{_problem(sample)} ", []
    for index, step in enumerate(steps):
        text += ("\n" if index else "") + step.text.strip() + layout.tag
        tag_ends.append(len(text))
    alone, ends = sample.tokenizer.pieces(text, param="response")
    ids = sample.tokenizer.with_bos(alone)
    # Several tokens can end with the tag's last character, if they are its bytes: the last of them
    # has read it all.
    tags = np.empty(0) if ends is None else np.searchsorted(ends, tag_ends, side="right") - 1
    if ends is None or not np.array_equal(ends[tags], tag_ends):
        raise UnsupportedText(
            f"this tokenizer lets no token end with the step tag {layout.tag[:64]!r}",
            param="response",
        )
    return ids, tags + len(ids) - len(alone)


def _chat(sample: Sample, layout: StepLayout) -> Int64[np.ndarray, " p"]:
    """The prompt as everywhere, messages with the layout's system message if they have none."""
    item = sample.item
    if item.messages is None or item.messages[0]["role"] == "system" or layout.system is None:
        return sample.prompt_ids
    told = [{"role": "system", "content": layout.system}, *item.messages]
    return sample.tokenizer.prompt_from_messages(
        told, item.tools, item.chat_template_kwargs, param="prompt"
    )


def _opening(sample: Sample) -> Int64[np.ndarray, " p"]:
    """BOS, the problem and a line break; ids are all of that already."""
    if not isinstance(sample.item.prompt, str) and sample.item.messages is None:
        return sample.prompt_ids
    problem = sample.tokenizer.pieces(f"{_problem(sample)}\n", param="prompt")[0]
    try:
        bos = sample.tokenizer.prompt_from_text("", param="prompt")  # an empty prompt is BOS alone
    except EmptyPrompt:
        return problem
    return problem if np.array_equal(problem[:1], bos) else np.concatenate([bos, problem])


def _problem(sample: Sample) -> str:
    """The question as text. Raises UnsupportedText for a conversation, or ids that are not their
    text's."""
    if isinstance(sample.item.prompt, str):
        return sample.item.prompt
    if sample.item.messages is None:
        return _text_of(sample, sample.prompt_ids, field="prompt")[0]
    turns = [message for message in sample.item.messages if message["role"] != "system"]
    asked = turns[0].get("content") if [turn["role"] for turn in turns] == ["user"] else None
    if not isinstance(asked, str):
        raise UnsupportedText(
            "this format reads one user message of text, or a raw prompt", param="prompt"
        )
    return asked
