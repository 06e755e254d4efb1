"""Cuts a response into the stretches of text that are its steps.

Where steps begin and end, the first of these that applies says:

1. The item's own `steps`: strings that the response has in this order, or spans of it. Between them
   the response has white space or step tags.
2. The step tag, if the response spells it: as a special token anywhere, or as text if the response
   ends with it. That is how model cards write a response. A tag of white space counts only where
   it is more than the separator, which would cut it apart.
3. The separator.

It knows text and no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from tokenreward.errors import UnsupportedText

Piece = tuple[int, int]
"""A half-open stretch of a response, in code points."""


def pieces_of(
    text: str, steps: Sequence[Any] | None, *, separator: str, tag: str, is_special: bool
) -> list[Piece]:
    """The stretches of a response that may be steps; those of white space alone are none.

    Args:
        text: The response.
        steps: The item's own steps, all strings or all spans [start, end]; None if it has none.
        separator: The text that ends a step.
        tag: The text that is read behind a step.
        is_special: Whether the tag is a special token.

    Raises:
        UnsupportedText: The item's `steps` are not in the response.
    """
    core = tag.strip() or tag
    if steps is not None:
        return _located(text, steps, core)
    pattern = _whole(core)
    if core.strip():
        spells_tag = is_special or text.rstrip().endswith(core)
    else:
        spells_tag = separator in core and separator != core
    if spells_tag and re.search(pattern, text):
        return _between(text, re.finditer(pattern, text))
    return _between(text, re.finditer(re.escape(separator), text))


def _whole(tag: str) -> str:
    """A pattern for a tag. A tag of letters is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", tag) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", tag) else ""
    return before + re.escape(tag) + after


def _between(text: str, cuts: Iterable[re.Match[str]]) -> list[Piece]:
    """The stretches of a text between cuts."""
    pieces, start = [], 0
    for cut in cuts:
        pieces.append((start, cut.start()))
        start = cut.end()
    return [*pieces, (start, len(text))]


def _located(text: str, steps: Sequence[Any], tag: str) -> list[Piece]:
    """Where the item's own steps are in the response. White space and tags around them are no part
    of them."""
    filling = re.compile(rf"(?:\s|{_whole(tag)})*" if tag.strip() else r"\s*")
    pieces, last = [], 0
    for place, step in enumerate(steps):
        param = f"steps[{place}]"
        start = _end(filling, text, last)
        if isinstance(step, str):
            content = _without_tags(step, tag)
            end = start + len(content)
            if text[start:end] != content:
                message = "the response does not go on with this step behind the one before"
                raise UnsupportedText(message, param=param)
        else:
            begin, end = int(step[0]), int(step[1])
            if not last <= begin <= end <= len(text):
                raise UnsupportedText(
                    f"the steps must be ascending ranges of {len(text)} characters, and this is "
                    f"[{begin}, {end}]",
                    param=param,
                )
            if start < begin:
                message = "the response has other text between this step and the one before"
                raise UnsupportedText(message, param=param)
            end = start + len(_without_tags(text[start:end], tag))
        if start >= end:
            raise UnsupportedText("there is no text in this step", param=param)
        pieces.append((start, end))
        last = end
    if _end(filling, text, last) < len(text):
        message = "the response goes on behind the last step"
        raise UnsupportedText(message, param=f"steps[{len(steps) - 1}]")
    return pieces


def _end(filling: re.Pattern[str], text: str, start: int) -> int:
    """Where what may stand between two steps ends."""
    match = filling.match(text, start)
    return start if match is None else match.end()


def _without_tags(text: str, tag: str) -> str:
    """A step without the white space and the tags around it."""
    text = text.strip()
    pattern, end = re.compile(_whole(tag)), len(text)
    # Nothing is copied before the end: a step of a request may be a million tags.
    while tag.strip() and pattern.fullmatch(text, max(0, end - len(tag)), end):
        end -= len(tag)
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]
