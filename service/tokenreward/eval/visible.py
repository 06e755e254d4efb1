"""Text of others, made safe to print: control characters would steer a terminal, surrogates cannot
be written."""

from __future__ import annotations

import unicodedata


def visible(text: str, *, keep: str = "") -> str:
    """The text with a replacement character for each that is a control, a surrogate or turns the
    writing direction; `keep` are controls that may stay."""
    return "".join(
        char if char in keep or not _steers(char) else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _steers(char: str) -> bool:
    if unicodedata.category(char) in ("Cc", "Cs"):
        return True
    return unicodedata.bidirectional(char) in (
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    )
