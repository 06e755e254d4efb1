"""Makes text from others safe to show, and gives rewards their colours.

A response, a label or an error message may hold characters that steer the terminal or turn the
writing direction. The terminal pictures, the tables and the HTML page take all such text through
`safe_text`, and all rewards through `colour_of`. It knows no rewards, no HTTP and no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

BELOW: Colour = (221, 76, 70)
ZERO: Colour = (255, 255, 255)
ABOVE: Colour = (52, 168, 83)
"""The strongest colours: red below zero, white at zero, green above. Black letters are readable on
all three and on everything between them, on dark and on light ground."""

NO_TEXT = "\N{EMPTY SET}"
"""Shown for a unit without characters of its own."""

_UNSAFE = re.compile(
    "["
    "\x00-\x1f"  # C0 controls; escape sequences begin with one of them
    "\x7f-\x9f"  # delete and the C1 controls; \x9b begins an escape sequence, too
    "\ud800-\udfff"  # surrogates, which cannot be written as UTF-8
    "\u061c\u200e\u200f"  # direction marks
    "\u202a-\u202e"  # direction embeddings and overrides
    "\u2066-\u2069"  # direction isolates
    "]"
)


def safe_text(text: str, *, keep: str = "", pictures: bool = False) -> str:
    """The text without characters that steer a terminal or turn the writing direction.

    Args:
        text: Text from others.
        keep: Characters that stay although they are controls, such as line breaks.
        pictures: Show a control below U+0020 and delete as their symbols (`\\x1b` as `␛`).

    Returns:
        The text, as long as it was: a replacement character or a symbol stands for each unsafe one.
    """

    def replacement(match: re.Match[str]) -> str:
        char = match[0]
        if char in keep:
            return char
        if pictures and char < " ":
            return chr(0x2400 + ord(char))
        if pictures and char == "\x7f":
            return "\N{SYMBOL FOR DELETE}"
        return "\N{REPLACEMENT CHARACTER}"

    return _UNSAFE.sub(replacement, text)


def safe_html(text: object) -> str:
    """The text of a value as HTML content or inside a quoted attribute: nothing in it is markup.

    Line breaks and tabs stay.
    """
    return escape(safe_text(str(text), keep="\n\t"), quote=True)


def colour_of(share: float) -> Colour:
    """The colour of a reward.

    Args:
        share: The reward over the largest |reward| that is shown beside it, -1 to 1.

    Returns:
        A point on the line from white to red (negative) or to green (positive).
    """
    end = ABOVE if share > 0 else BELOW
    weight = min(abs(share), 1.0)
    red, green, blue = (
        round(zero + weight * (strongest - zero)) for zero, strongest in zip(ZERO, end, strict=True)
    )
    return red, green, blue


def full_strength(rewards: Iterable[float]) -> float:
    """The |reward| that gets the strongest colour: the largest; 1 if all are zero or none is there,
    since any scale will do then."""
    return max((abs(float(reward)) for reward in rewards), default=0.0) or 1.0


_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html_page(title: str, body: str, *, style: str) -> str:
    """A whole HTML page, whose policy lets nothing be loaded or run.

    Args:
        title: Text, escaped here.
        body: Markup, put in as it is.
        style: The style sheet, put in as it is.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_PAGE_POLICY}">
<title>{safe_html(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
