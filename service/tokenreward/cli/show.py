"""Draws a response with each unit on the colour of its reward, for a terminal or a page.

Red is below zero, white is zero, green is above; the strongest colour is the largest |reward|
shown. The letters are black on every colour, so that the picture reads the same on dark and light
ground. It knows no HTTP and no files.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from tokenreward.display import ABOVE, BELOW, NO_TEXT, ZERO, colour_of, full_strength, safe_text
from tokenreward_client.rewards import Rewards

_RESET = "\x1b[0m"
_NEWLINE = "\N{RETURN SYMBOL}"
_LEGEND_STEPS = 9
_CELL_WIDTH, _LINE_HEIGHT, _BOX_HEIGHT, _MARGIN = 8.4, 24, 20, 12
_MONOSPACE = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"


def unit_texts(item: dict[str, Any], answer: Rewards) -> list[str]:
    """The text of each unit, one per reward: the caller's spans, or the tokens of the answer.

    Args:
        item: The item as it was sent.
        answer: Its answer, with tokens unless the item has spans.
    """
    response = item["response"]
    if isinstance(item.get("spans"), list):
        return [response[start:end] for start, end in item["spans"]]
    texts, tokens = [], list(answer.tokens or ())
    if item.get("whole") == "sequence" and answer.rewards is not None:
        # A language model's rewards begin with the second token.
        tokens = tokens[-len(answer.rewards) :]
    for token in tokens:
        start, end = token.span or (0, 0)
        # The response's own characters are exact; a token of half a character is not text at all.
        is_exact = isinstance(response, str) and end > start
        texts.append(response[start:end] if is_exact else token.text)
    return texts


def coloured(texts: Sequence[str], rewards: Sequence[float], *, colour: bool = True) -> str:
    """The units for a terminal: on their colours in 24-bit ANSI with a legend line below.

    Args:
        texts: The text of each unit.
        rewards: The reward of each unit.
        colour: Off: each number stands beside its text instead, and nothing is coloured.

    Raises:
        ValueError: There are not as many texts as rewards.
    """
    strongest = _strongest(texts, rewards)
    pieces = []
    for text, reward in zip(texts, rewards, strict=True):
        if colour:
            pieces.append(_painted(text, reward / strongest))
        else:
            pieces.append(f"{_shown_text(text)}[{reward:+.3g}]")
    if colour:
        half = _LEGEND_STEPS // 2
        scale = "".join(_painted("  ", step / half) for step in range(-half, half + 1))
        pieces.append(f"\n{-strongest:+.3g} {scale} {strongest:+.3g}")
    return "".join(pieces)


def coloured_svg(texts: Sequence[str], rewards: Sequence[float], *, columns: int = 80) -> str:
    """The same picture as an SVG document; each unit's number is its tooltip.

    Args:
        texts: The text of each unit.
        rewards: The reward of each unit.
        columns: Characters per line; longer lines are wrapped.

    Raises:
        ValueError: There are not as many texts as rewards.
    """
    strongest = _strongest(texts, rewards)
    boxes, row, column = [], 0, 0
    for text, reward in zip(texts, rewards, strict=True):
        red, green, blue = colour_of(reward / strongest)
        for fragment in _fragments(_shown_text(text), columns):
            num_cells = _num_cells(fragment)
            if column and column + num_cells > columns:
                row, column = row + 1, 0
            x, y = _MARGIN + column * _CELL_WIDTH, _MARGIN + row * _LINE_HEIGHT
            width = max(num_cells, 1) * _CELL_WIDTH
            boxes.append(
                f"<g><title>{reward:+.3g}</title>"
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BOX_HEIGHT}" rx="3" '
                f'fill="rgb({red},{green},{blue})" stroke="#888" stroke-opacity="0.25"/>'
                f'<text x="{x:.1f}" y="{y + 15}" textLength="{width:.1f}" '
                f'lengthAdjust="spacingAndGlyphs" fill="#111" xml:space="preserve">'
                f"{escape(fragment)}</text></g>"
            )
            column += num_cells
            if fragment.endswith(_NEWLINE):
                row, column = row + 1, 0
    num_rows = row + 1 if column else row
    return _svg_document(boxes, num_rows=num_rows, columns=columns, strongest=strongest)


def _strongest(texts: Sequence[str], rewards: Sequence[float]) -> float:
    """The |reward| at full colour. Raises ValueError if texts and rewards do not go together."""
    if len(texts) != len(rewards):
        raise ValueError(f"{len(texts)} texts cannot show {len(rewards)} rewards")
    return full_strength(rewards)


def _shown_text(text: str) -> str:
    """What is drawn for the text of a unit, which must not steer the terminal that shows it."""
    return safe_text(text, keep="\n\t", pictures=True) or NO_TEXT


def _painted(text: str, share: float) -> str:
    """A text on the colour of a reward that is `share` of the strongest."""
    red, green, blue = colour_of(share)
    on = f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m"
    # A colour that is on at the end of a line floods the rest of it in many terminals.
    return on + _shown_text(text).replace("\n", f"{_NEWLINE}{_RESET}\n{on}") + _RESET


def _fragments(text: str, columns: int) -> Iterator[str]:
    """Pieces of a text that fit a row and end where a line ends."""
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
    num = len(text)
    for char in text:
        num += unicodedata.east_asian_width(char) in "WF"
        num -= unicodedata.category(char) in ("Mn", "Me", "Cf")
    return num


def _svg_document(boxes: Sequence[str], *, num_rows: int, columns: int, strongest: float) -> str:
    """The document around the boxes, with a legend below them."""
    width = 2 * _MARGIN + columns * _CELL_WIDTH
    legend_y = 2 * _MARGIN + num_rows * _LINE_HEIGHT
    height = legend_y + _BOX_HEIGHT + _MARGIN
    stops = []
    for offset, colour in ((0, BELOW), (0.5, ZERO), (1, ABOVE)):
        rgb = ",".join(map(str, colour))
        stops.append(f'<stop offset="{offset}" stop-color="rgb({rgb})"/>')
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" \
viewBox="0 0 {width:.0f} {height}" font-family="{_MONOSPACE}" font-size="14">
<style>.note{{fill:#57606a}}\
@media(prefers-color-scheme:dark){{.note{{fill:#9da7b1}}}}</style>
<defs><linearGradient id="scale">{"".join(stops)}</linearGradient></defs>
{"".join(boxes)}
<text class="note" x="{_MARGIN + 64}" y="{legend_y + 12}" text-anchor="end" \
font-size="12">{-strongest:+.3g}</text>
<rect x="{_MARGIN + 72}" y="{legend_y + 2}" width="160" height="12" rx="3" fill="url(#scale)" \
stroke="#888" stroke-opacity="0.25"/>
<text class="note" x="{_MARGIN + 240}" y="{legend_y + 12}" font-size="12">{strongest:+.3g} \
reward per token</text>
</svg>
"""
