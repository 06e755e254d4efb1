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
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int64

from tokenreward.alignment import owners
from tokenreward.contract import Sample, Source, TokenizerView
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


_made: WeakKeyDictionary[Sample, dict[StepLayout, StepRow]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of the response between separators, from `start` on."""

    text: str
    start: int

    @property
    def is_step(self) -> bool:
        return bool(self.text.strip())


def step_row(sample: Sample, layout: StepLayout) -> StepRow:
    """The row that holds a sample's steps, kept as long as the sample is: it is read, and then
    scored.

    Raises EmptyResponse if it has none, UnsupportedText, EmptyPrompt.
    """
    made = _made.setdefault(sample, {})
    if layout not in made:
        made[layout] = _step_row(sample, layout)
    return made[layout]


def _step_row(sample: Sample, layout: StepLayout) -> StepRow:
    source = _source(sample)
    text, ends = _response(sample, source)
    pieces = _pieces(text, layout.separator)
    steps = [piece for piece in pieces if piece.is_step]
    if not steps:
        where = f"{source.param}.response"
        raise EmptyResponse(f"`{where}` has no step to score, only white space", param=where)
    step_of = _step_of(steps, ends, sample, length=len(text))
    if layout.name == "math_shepherd":
        return StepRow(*_as_one_text(source, sample, steps, layout), step_of)
    if layout.name == "skywork":
        return StepRow(*_line_by_line(source, sample, pieces, layout), step_of)
    return StepRow(*_step_by_step(source, sample, steps, layout), step_of)


def tag_of(
    layout: StepLayout, words: TokenizerView, *, param: str | None
) -> Int64[np.ndarray, " 1"]:
    """The token that the scores are read at; `math_shepherd`'s need not be one. Raises
    UnsupportedText."""
    if layout.name != "qwen":
        return words.pieces(layout.tag, param=param or "step_tag")[0][-1:]
    tag = words.single(layout.tag)
    if tag is None:
        raise UnsupportedText(
            f"the step tag {layout.tag[:64]!r} is not one token of this tokenizer: is it the "
            "`layout` of this "
            "checkpoint, and its `step_tag`?",
            param=param,
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
        where = f"{_source(sample).param}.response"
        raise UnsupportedText(
            f"`{where}`: step {without[0]} (from 0) has no token to itself: another step ends in "
            "the token that it "
            "ends in. Use another `separator`",
            param=where,
        )
    return step_of


def _response(sample: Sample, source: Source) -> tuple[str, Int64[np.ndarray, " b"]]:
    """The response without a final end-of-turn, and where its tokens' characters end. Raises
    UnsupportedText."""
    ids = sample.response_ids[:-1] if sample.terminal else sample.response_ids
    text = source.item.response
    if not isinstance(text, str):
        return _text_of(source, ids, field="response")
    if source.ends is None:
        raise UnsupportedText(
            f"`{source.param}.response`: this tokenizer cannot say where tokens end",
            param=f"{source.param}.response",
        )
    ends = source.ends[: len(ids)]
    if len(source.ends) > len(ids):  # the text spells its end-of-turn
        text = text[: ends[-1] if len(ends) else 0]
    return text, ends


def _text_of(
    source: Source, ids: Int64[np.ndarray, " n"], *, field: str
) -> tuple[str, Int64[np.ndarray, " n"]]:
    """The text of ids, and where each one's characters end, if they are what the text tokenises
    to."""
    where = f"{source.param}.{field}"
    text = source.words.text(ids)
    again, ends = source.words.pieces(text, param=where)
    if ends is None or not np.array_equal(again, ids):
        raise UnsupportedText(
            f"`{where}`: these ids are not what their text tokenises to, and this format is made "
            "of text: send text "
            "(with `spans` for rewards per token of yours)",
            param=where,
        )
    return text, ends


def _step_by_step(
    source: Source, sample: Sample, steps: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    tag = tag_of(layout, source.words, param=source.param)
    return _joined(
        source, _chat(source, sample, layout), [step.text.strip() for step in steps], tag
    )


def _line_by_line(
    source: Source, sample: Sample, pieces: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    last_step = max(index for index, piece in enumerate(pieces) if piece.is_step)
    read = pieces[: last_step + 1]
    tag = tag_of(layout, source.words, param=source.param)
    ids, tags = _joined(source, _opening(source, sample), [piece.text for piece in read], tag)
    return ids, tags[[piece.is_step for piece in read]]


def _joined(
    source: Source,
    prompt: Int64[np.ndarray, " p"],
    texts: Sequence[str],
    tag: Int64[np.ndarray, " g"],
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The prompt, then each text tokenised alone and the tag behind it; and where the tags end."""
    parts = [prompt]
    for text in texts:
        parts += [source.words.pieces(text, param=f"{source.param}.response")[0], tag]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts), ends[2::2] - 1


def _as_one_text(
    source: Source, sample: Sample, steps: Sequence[_Piece], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    where = f"{source.param}.response"
    text, tag_ends = f"{_problem(source, sample)} ", []
    for index, step in enumerate(steps):
        text += ("\n" if index else "") + step.text.strip() + layout.tag
        tag_ends.append(len(text))
    alone, ends = source.words.pieces(text, param=where)
    ids = source.words.with_bos(alone)
    # Several tokens can end with the tag's last character, if they are its bytes: the last of them
    # has read it all.
    tags = np.empty(0) if ends is None else np.searchsorted(ends, tag_ends, side="right") - 1
    if ends is None or not np.array_equal(ends[tags], tag_ends):
        raise UnsupportedText(
            f"`{where}`: this tokenizer lets no token end with the step tag {layout.tag[:64]!r}",
            param=where,
        )
    return ids, tags + len(ids) - len(alone)


def _chat(source: Source, sample: Sample, layout: StepLayout) -> Int64[np.ndarray, " p"]:
    """The prompt as everywhere, messages with the layout's system message if they have none."""
    item = source.item
    if item.messages is None or item.messages[0]["role"] == "system" or layout.system is None:
        return sample.prompt_ids
    told = [{"role": "system", "content": layout.system}, *item.messages]
    return source.words.prompt_from_messages(
        told, item.tools, item.chat_template_kwargs, param=f"{source.param}.prompt"
    )


def _opening(source: Source, sample: Sample) -> Int64[np.ndarray, " p"]:
    """BOS, the problem and a line break; ids are all of that already."""
    where = f"{source.param}.prompt"
    if not isinstance(source.item.prompt, str) and source.item.messages is None:
        return sample.prompt_ids
    problem = source.words.pieces(f"{_problem(source, sample)}\n", param=where)[0]
    try:
        bos = source.words.prompt_from_text("", param=where)  # an empty prompt is BOS alone
    except EmptyPrompt:
        return problem
    return problem if np.array_equal(problem[:1], bos) else np.concatenate([bos, problem])


def _problem(source: Source, sample: Sample) -> str:
    """The question as text. Raises UnsupportedText for a conversation, or ids that are not their
    text's."""
    if isinstance(source.item.prompt, str):
        return source.item.prompt
    if source.item.messages is None:
        return _text_of(source, sample.prompt_ids, field="prompt")[0]
    turns = [message for message in source.item.messages if message["role"] != "system"]
    asked = turns[0].get("content") if [turn["role"] for turn in turns] == ["user"] else None
    if not isinstance(asked, str):
        where = f"{source.param}.prompt"
        raise UnsupportedText(
            f"`{where}`: this format reads one user message of text, or a raw prompt", param=where
        )
    return asked


def _source(sample: Sample) -> Source:
    assert sample.source is not None
    return sample.source
