"""`items[i]` in messages and params, where a request holds only some of its caller's items: counts
the caller's again.

It reads nothing else of an error, and knows neither who cut the request nor why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ITEM = re.compile(r"\bitems\[(\d{1,9})\]")


def renumbered(text: str, positions: Sequence[int]) -> str:
    """`positions`: where each item of the shorter request stood in the caller's. Numbers beyond
    them are left alone."""

    def number(match: re.Match[str]) -> str:
        index = int(match[1])
        return f"items[{positions[index]}]" if index < len(positions) else match[0]

    return _ITEM.sub(number, text)
