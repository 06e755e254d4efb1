"""A sample's problem and response as the texts that formats of steps are made of; and an opening in
front of a text.

Text is taken as the caller wrote it. Ids are decoded, and refused where they are not what their
text tokenises to. It knows no format and no scorer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from tokenreward.contract import Sample, TokenizerView
from tokenreward.errors import UnsupportedText


def response_of(sample: Sample) -> tuple[str, Int64[np.ndarray, " b"]]:
    """The response without a final end-of-turn, and where the characters of its tokens end.

    Raises:
        UnsupportedText: The tokens have no known ends in a text, or are the prompt's, too
            (`whole: sequence`).
    """
    sample.refuse_sequence()
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


def problem_of(sample: Sample) -> str:
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


def behind_bos(opening: str, text: str, tokenizer: TokenizerView) -> str:
    """A text with an opening in front. BOS goes before both if either begins with it."""
    bos = tokenizer.bos_text
    begin = bos if text.startswith(bos) or opening.startswith(bos) else ""
    return begin + opening.removeprefix(bos) + text.removeprefix(bos)
