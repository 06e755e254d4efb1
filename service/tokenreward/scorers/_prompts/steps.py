"""The row that a process reward model reads: the response cut into steps, with a place behind each
step where its score is read.

    qwen           prompt, step, tag, step, tag, ...
                   The prompt is the sample's own. Each step is tokenised alone, without the white
                   space around it. The tag is one token (Zhang et al. 2025, 2501.07301, and their
                   model card).
    math_shepherd  problem + " " + step + tag + "\\n" + step + tag + ...
                   All of it is tokenised as one text (Wang et al. 2023, 2312.08935; with other tags
                   and joiners OpenR's Qwen models, 2410.09671).
    skywork        BOS, problem + "\\n", piece, tag, piece, tag, ...
                   Each piece between separators is tokenised alone, blank lines included. The tag
                   is the last token of its text (Skywork-o1-Open-PRM's own inference code).
    turns          user: problem + " " + step, assistant: answer, user: step, assistant: answer, ...
                   A conversation of the chat template, in which each step is a turn of the user and
                   each turn before is answered with the good token (RLHFlow's models: Xiong et al.
                   2024). There is no tag: a score is read where the template has the answer begin.

What stands between the problem and the first step is the layout's `opening`, and what stands
between a tag and the next step its `joiner`. The problem is a raw prompt, or the text of the one
user message: `math_shepherd` and `skywork` know no system message. Prompt ids are read as they are.
`math_shepherd` and `turns` can read them only where they are what their text tokenises to.

A step runs to the start of the next step, so what separates them belongs to the step in front of
it. Pieces of white space alone are no steps. A token belongs to the step that holds its last
character, and a final end-of-turn to the last step; that end-of-turn is not read, because no score
stands behind it. A tag's place is known because this module put it there: a tag that the response
spells ends a step, and is not read as text (`cutting` says when). This module knows no model and no
scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from tokenreward.alignment import owners
from tokenreward.contract import Sample, TokenizerView
from tokenreward.errors import EmptyPrompt, EmptyResponse, UnsupportedText
from tokenreward.scorers._prompts.cutting import Piece, pieces_of
from tokenreward.scorers._prompts.texts import problem_of, response_of

LayoutName = Literal["qwen", "math_shepherd", "skywork", "turns"]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """A format of steps.

    Attributes:
        name: The format.
        separator: The text that ends a step of the response.
        tag: The text that is read behind a step; `turns` has none.
        joiner: The text between a tag and the next step; `turns` has none.
        opening: The text between the problem and the first step; `qwen` has none.
        system: For `qwen`: the system message of conversations that have none.
        answer: For `turns`: how earlier steps are answered.
    """

    name: LayoutName
    separator: str
    tag: str
    joiner: str = ""
    opening: str = ""
    system: str | None = None
    answer: str = "+"


@dataclass(frozen=True, slots=True, eq=False)
class StepRow:
    """A row of k steps.

    Attributes:
        ids: The tokens to read, up to the last tag.
        tags: The place in `ids` where each step's score is read: of its tag, if there is one.
        step_of: The step of each response token. It never decreases, and every step has a token.
    """

    ids: Int64[np.ndarray, " n"]
    tags: Int64[np.ndarray, " k"]
    step_of: Int64[np.ndarray, " r"]


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
    text, ends = response_of(sample)
    pieces = pieces_of(
        text,
        None if sample.item.steps is None else list(sample.item.steps),
        separator=layout.separator,
        tag=layout.tag,
        is_special=sample.tokenizer.without_special(layout.tag) != layout.tag,
    )
    steps = [(start, end) for start, end in pieces if text[start:end].strip()]
    if not steps:
        raise EmptyResponse("there is no step to score, only white space", param="response")
    # What comes from options is sent once, and written for every step and every item.
    num_inserted = len(layout.tag) + len(layout.joiner)
    sample.budget.spend(num_inserted * len(steps) + len(layout.system or layout.opening))
    step_of = _step_of(steps, ends, sample, length=len(text))
    if layout.name == "skywork":
        last = pieces.index(steps[-1])
        texts = [text[start:end] for start, end in pieces[: last + 1]]
        ids, tags = _joined(sample, _opening(sample, layout), texts, layout)
        # Blank lines are read and tagged; no score is read there.
        return StepRow(ids, tags[[bool(piece.strip()) for piece in texts]], step_of)
    texts = [text[start:end].strip() for start, end in steps]
    if layout.name == "math_shepherd":
        return StepRow(*_as_one_text(sample, texts, layout), step_of)
    if layout.name == "turns":
        return StepRow(*_as_turns(sample, texts, layout), step_of)
    return StepRow(*_joined(sample, _chat(sample, layout), texts, layout), step_of)


def check_layout(layout: StepLayout, tokenizer: TokenizerView) -> None:
    """Refuses a layout that this tokenizer cannot read.

    Raises:
        UnsupportedText: The tag of `qwen` is not one token, a tag cannot be tokenised, or it is no
            token's end where the joiner follows it.
    """
    if layout.name == "turns":
        if not tokenizer.has_chat_template:
            raise UnsupportedText("the layout `turns` needs a chat template, and there is none")
        return
    tag_of(layout, tokenizer)
    if layout.name == "math_shepherd":
        text = f"a{layout.tag}"
        _, ends = tokenizer.pieces(f"{text}{layout.joiner}a", param=None)
        if ends is not None and len(text) not in ends:
            raise _no_token_ends_with(layout)


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


def _step_of(
    steps: Sequence[Piece], ends: Int64[np.ndarray, " b"], sample: Sample, *, length: int
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
    begins = [0, *(start for start, _ in steps[1:])]
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


def _joined(
    sample: Sample, prompt: Int64[np.ndarray, " p"], texts: Sequence[str], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The prompt, then each text tokenised alone with the tag behind it; and where the tags are."""
    tag = sample.budget.once(("tag", layout), lambda: tag_of(layout, sample.tokenizer))
    parts = [prompt]
    for place, text in enumerate(texts):
        if place:
            text = layout.joiner + text
        parts += [sample.tokenizer.pieces(text, param="response")[0], tag]
    ends = np.cumsum([len(part) for part in parts])
    return np.concatenate(parts), ends[2::2] - 1


def _as_one_text(
    sample: Sample, texts: Sequence[str], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The ids and tags of `math_shepherd`."""
    text, tag_ends = f"{problem_of(sample)}{layout.opening}", []
    for place, step in enumerate(texts):
        text += (layout.joiner if place else "") + step + layout.tag
        tag_ends.append(len(text))
    alone, ends = sample.tokenizer.pieces(text, param="response")
    ids = sample.tokenizer.with_bos(alone)
    # Several tokens can end with the tag's last character, if they are its bytes. The last of them
    # has read the whole character.
    tags = np.empty(0) if ends is None else np.searchsorted(ends, tag_ends, side="right") - 1
    if ends is None or not np.array_equal(ends[tags], tag_ends):
        raise _no_token_ends_with(layout)
    return ids, tags + len(ids) - len(alone)


def _no_token_ends_with(layout: StepLayout) -> UnsupportedText:
    return UnsupportedText(
        f"this tokenizer lets no token end with the step tag {layout.tag[:64]!r} where "
        f"{layout.joiner[:64]!r} and the next step follow it: set `joiner` to what the checkpoint "
        "was trained with",
        param="response",
    )


def _as_turns(
    sample: Sample, texts: Sequence[str], layout: StepLayout
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """The ids of `turns`, and where each answer is predicted.

    Raises:
        UnsupportedText: The template writes a turn in another way once others follow it.
    """
    item = sample.item
    messages = [each for each in item.messages or () if each["role"] == "system"]
    ids, tags = np.empty(0, dtype=np.int64), []
    num_characters = 0
    problem = problem_of(sample).removeprefix(sample.tokenizer.bos_text)  # it is the template's
    for place, text in enumerate(texts):
        content = text if place else f"{problem}{layout.opening}{text}"
        messages.append({"role": "user", "content": content})
        num_characters += len(content) + len(layout.answer)
        sample.budget.spend(num_characters)
        longer = sample.tokenizer.prompt_from_messages(
            messages, item.tools, item.chat_template_kwargs, param="response"
        )
        if not np.array_equal(longer[: len(ids)], ids):
            raise UnsupportedText(
                "the chat template writes a turn in another way once others follow it: its scores "
                "cannot be read in one row",
                param="response",
            )
        ids = longer
        tags.append(len(ids) - 1)
        messages.append({"role": "assistant", "content": layout.answer})
    return ids, np.asarray(tags, dtype=np.int64)


def _chat(sample: Sample, layout: StepLayout) -> Int64[np.ndarray, " p"]:
    """The sample's prompt; messages without a system message get the layout's."""
    item = sample.item
    if item.messages is None or item.messages[0]["role"] == "system" or layout.system is None:
        return sample.prompt_ids
    messages = [{"role": "system", "content": layout.system}, *item.messages]
    return sample.budget.once(
        ("process", json.dumps([messages, item.tools, item.chat_template_kwargs])),
        lambda: sample.tokenizer.prompt_from_messages(
            messages, item.tools, item.chat_template_kwargs, param="prompt"
        ),
    )


def _opening(sample: Sample, layout: StepLayout) -> Int64[np.ndarray, " p"]:
    """BOS, the problem and the opening; a prompt of ids is taken to hold all of it already."""
    if not isinstance(sample.item.prompt, str) and sample.item.messages is None:
        return sample.prompt_ids
    problem = sample.tokenizer.pieces(f"{problem_of(sample)}{layout.opening}", param="prompt")[0]
    try:
        bos = sample.tokenizer.prompt_from_text("", param="prompt")  # an empty prompt is BOS alone
    except EmptyPrompt:
        return problem
    return problem if np.array_equal(problem[:1], bos) else np.concatenate([bos, problem])
