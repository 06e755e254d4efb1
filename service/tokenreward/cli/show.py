"""A response with each token on the colour of its reward: as text for a terminal, as SVG for a
page.

Red is below zero, white is zero, green is above; the strongest colour is the largest |reward|
shown. The letters are black on every colour, so that the picture reads the same on dark and light
ground. It knows no HTTP.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from tokenreward_client.rewards import Rewards

Colour = tuple[int, int, int]

_BELOW, _ZERO, _ABOVE = (221, 76, 70), (255, 255, 255), (52, 168, 83)
_RESET = "\x1b[0m"
_NOTHING = "\N{EMPTY SET}"
_NEWLINE = "\N{RETURN SYMBOL}"
_LEGEND_STEPS = 9
_CELL_WIDTH, _LINE_HEIGHT, _BOX_HEIGHT, _MARGIN = 8.4, 24, 20, 12


def pieces(item: dict[str, Any], answer: Rewards) -> list[str]:
    """The text of each unit: the caller's spans, or the tokens that came with the answer. One per
    reward."""
    response = item["response"]
    if isinstance(item.get("spans"), list):
        return [response[start:end] for start, end in item["spans"]]
    texts = []
    for token in answer.tokens or ():
        start, end = token.span or (0, 0)
        # The response's own characters are exact; a token of half a character is not text at all.
        texts.append(
            response[start:end] if isinstance(response, str) and end > start else token.text
        )
    return texts


def coloured(texts: Sequence[str], rewards: Sequence[float], *, colour: bool = True) -> str:
    """The texts on their colours, in 24-bit ANSI, and a legend line; without colour, the numbers
    beside them.

    Raises ValueError if there are not as many texts as rewards.
    """
    limit = _limit(texts, rewards)
    if not colour:
        shown = (
            f"{_visible(text) or _NOTHING}[{reward:+.3g}]"
            for text, reward in zip(texts, rewards, strict=True)
        )
        return "".join(shown)
    body = "".join(
        _painted(text, reward / limit) for text, reward in zip(texts, rewards, strict=True)
    )
    return f"{body}\n{_legend(limit)}"


def coloured_svg(texts: Sequence[str], rewards: Sequence[float], *, columns: int = 80) -> str:
    """The same picture as an SVG document, wrapped at `columns`; each token's number is its
    tooltip.

    Raises ValueError if there are not as many texts as rewards.
    """
    limit = _limit(texts, rewards)
    boxes, row, column = [], 0, 0
    for text, reward in zip(texts, rewards, strict=True):
        for fragment in _fragments(_visible(text) or _NOTHING, columns):
            width = _num_cells(fragment)
            if column and column + width > columns:
                row, column = row + 1, 0
            boxes.append(_box(fragment, reward, limit=limit, row=row, column=column))
            column += width
            if fragment.endswith(_NEWLINE):
                row, column = row + 1, 0
    return _document(boxes, num_rows=row + (1 if column else 0), columns=columns, limit=limit)


def colour_of(share: float) -> Colour:
    """The colour of a reward that is `share` (-1 to 1) of the strongest."""
    end = _ABOVE if share > 0 else _BELOW
    weight = min(abs(share), 1.0)
    red, green, blue = (
        round(zero + weight * (far - zero)) for zero, far in zip(_ZERO, end, strict=True)
    )
    return red, green, blue


def _limit(texts: Sequence[str], rewards: Sequence[float]) -> float:
    """The largest |reward|; 1 if there is none, since any scale will do then."""
    if len(texts) != len(rewards):
        raise ValueError(f"{len(texts)} texts cannot show {len(rewards)} rewards")
    return max((abs(float(reward)) for reward in rewards), default=0.0) or 1.0


def _visible(text: str) -> str:
    """Control characters as their pictures: a response must not steer the terminal that shows
    it."""
    return "".join(_picture(char) for char in text)


def _picture(char: str) -> str:
    if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"):
        return char
    code = ord(char)
    return (
        chr(0x2400 + code)
        if code < 0x20
        else "\N{SYMBOL FOR DELETE}"
        if code == 0x7F
        else "\N{REPLACEMENT CHARACTER}"
    )


def _painted(text: str, share: float) -> str:
    red, green, blue = colour_of(share)
    on = f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m"
    # A colour that is on at the end of a line floods the rest of it in many terminals.
    return on + (_visible(text) or _NOTHING).replace("\n", f"{_NEWLINE}{_RESET}\n{on}") + _RESET


def _legend(limit: float) -> str:
    half = _LEGEND_STEPS // 2
    scale = "".join(_painted("  ", step / half) for step in range(-half, half + 1))
    return f"{-limit:+.3g} {scale} {limit:+.3g}"


def _fragments(text: str, columns: int) -> Iterator[str]:
    """Pieces that fit a row and end where a line ends."""
    fragment = ""
    for char in text.replace("\t", "    "):
        fragment += _NEWLINE if char == "\n" else char
        if char == "\n" or _num_cells(fragment) >= columns:
            yield fragment
            fragment = ""
    if fragment:
        yield fragment


def _num_cells(text: str) -> int:
    """Columns in a monospaced font: wide characters take two, marks that combine take none."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)


def _box(text: str, reward: float, *, limit: float, row: int, column: int) -> str:
    width = max(_num_cells(text), 1) * _CELL_WIDTH
    x, y = _MARGIN + column * _CELL_WIDTH, _MARGIN + row * _LINE_HEIGHT
    red, green, blue = colour_of(reward / limit)
    return (
        f"<g><title>{reward:+.3g}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BOX_HEIGHT}" rx="3" '
        f'fill="rgb({red},{green},{blue})" stroke="#888" stroke-opacity="0.25"/>'
        f'<text x="{x:.1f}" y="{y + 15}" textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs" fill="#111" '
        f'xml:space="preserve">{escape(text)}</text></g>'
    )


def _document(boxes: Sequence[str], *, num_rows: int, columns: int, limit: float) -> str:
    width = 2 * _MARGIN + columns * _CELL_WIDTH
    legend_y = 2 * _MARGIN + num_rows * _LINE_HEIGHT
    height = legend_y + _BOX_HEIGHT + _MARGIN
    stops = "".join(
        f'<stop offset="{offset}" stop-color="rgb({",".join(map(str, colour))})"/>'
        for offset, colour in ((0, _BELOW), (0.5, _ZERO), (1, _ABOVE))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" \
viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14">
<style>.note{{fill:#57606a}}@media(prefers-color-scheme:dark){{.note{{fill:#9da7b1}}}}</style>
<defs><linearGradient id="scale">{stops}</linearGradient></defs>
{"".join(boxes)}
<text class="note" x="{_MARGIN + 64}" y="{legend_y + 12}" text-anchor="end" font-size="12">{-limit:+.3g}</text>
<rect x="{_MARGIN + 72}" y="{legend_y + 2}" width="160" height="12" rx="3" fill="url(#scale)" stroke="#888" \
stroke-opacity="0.25"/>
<text class="note" x="{_MARGIN + 240}" y="{legend_y + 12}" font-size="12">{limit:+.3g} reward per token</text>
</svg>
"""
