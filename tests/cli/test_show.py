"""The picture of a response: every character is there, on the colour of its reward."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tokenreward.cli.show import coloured, coloured_svg, unit_texts
from tokenreward.display import colour_of
from tokenreward.wire import Token
from tokenreward_client import Rewards

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def test_colours_diverge_from_white() -> None:
    assert colour_of(0.0) == (255, 255, 255)
    red, green, _ = colour_of(-1.0)
    assert red > 2 * green
    red, green, _ = colour_of(1.0)
    assert green > 2 * red
    assert colour_of(0.5)[0] > colour_of(1.0)[0]


@pytest.mark.parametrize("share", np.linspace(-1, 1, 21))
def test_black_letters_are_readable_on_every_colour(share: float) -> None:
    """WCAG's contrast ratio, at least 4.5 for text."""
    linear = [
        c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in colour_of(float(share))
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert (luminance + 0.05) / 0.05 >= 4.5


def test_terminal_text_is_the_response_with_the_largest_reward_at_full_strength() -> None:
    shown = coloured(["It", " is", " 4"], [0.5, -2.0, 0.0])
    body, legend = shown.split("\n")
    assert ESCAPES.sub("", body) == "It is 4"
    red, green, blue = colour_of(-1.0)
    assert f"\x1b[48;2;{red};{green};{blue}m\x1b[38;2;0;0;0m is\x1b[0m" in body
    assert ESCAPES.sub("", legend).split() == ["-2", "+2"]


def test_colour_is_off_at_the_end_of_a_line() -> None:
    body = coloured(["a\nb"], [1.0])
    assert all(line.endswith("\x1b[0m") for line in body.split("\n")[:2])


def test_without_colour_the_numbers_stand_beside_the_text() -> None:
    assert coloured(["It", " is", ""], [0.5, -2.0, 1.0], colour=False) == "It[+0.5] is[-2]∅[+1]"


def test_response_cannot_steer_the_terminal() -> None:
    for colour in (True, False):
        shown = ESCAPES.sub("", coloured(["\x1b[2J\x07\x9b\x7f"], [1.0], colour=colour))
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
        assert "␛[2J␇" in shown


@pytest.mark.parametrize("draw", [coloured, coloured_svg])
def test_as_many_texts_as_rewards(draw: object) -> None:
    with pytest.raises(ValueError, match="2 texts cannot show 1 rewards"):
        draw(["a", "b"], [1.0])  # type: ignore[operator]


def test_all_zero_and_no_rewards_are_drawn() -> None:
    for texts in (["a"], []):
        assert "a" in coloured(texts, [0.0] * len(texts)) + "a"
        ElementTree.fromstring(coloured_svg(texts, [0.0] * len(texts)))  # noqa: S314


def test_svg_is_well_formed_wraps_and_keeps_every_character() -> None:
    texts = ["<b>", " & ", "日本語", "a\nb", "x" * 30, "", "\x1b"]
    root = ElementTree.fromstring(  # noqa: S314
        coloured_svg(texts, [1.0, -1.0, 0.0, 0.5, 0.2, 0.1, 0.3], columns=20)
    )
    space = "{http://www.w3.org/2000/svg}"
    boxes = root.findall(f"{space}g")
    letters = "".join(box.findtext(f"{space}text") or "" for box in boxes)
    assert letters == "<b> & 日本語a⏎b" + "x" * 30 + "∅␛"
    assert boxes[0].findtext(f"{space}title") == "+1"
    rectangles = [box.find(f"{space}rect") for box in boxes]
    width = float(root.attrib["width"])
    edges = [
        float(box.attrib["x"]) + float(box.attrib["width"]) for box in rectangles if box is not None
    ]
    assert max(edges) <= width
    assert len({box.attrib["y"] for box in rectangles if box is not None}) >= 3


def test_svg_labels_follow_the_page_and_letters_do_not() -> None:
    svg = coloured_svg(["a"], [1.0])
    assert "prefers-color-scheme:dark" in svg
    assert 'fill="#111"' in svg


def test_texts_are_the_spans_else_the_tokens() -> None:
    answer = Rewards(np.zeros(2, dtype=np.float32))
    assert unit_texts({"response": "It is", "spans": [[0, 2], [2, 5]]}, answer) == ["It", " is"]
    tokens = (Token(id=1, text="ĠIt", span=(0, 2)), Token(id=2, text="<|end|>", span=(2, 2)))
    answer = Rewards(np.zeros(2, dtype=np.float32), tokens=tokens)
    assert unit_texts({"response": "It"}, answer) == ["It", "<|end|>"]
    assert unit_texts({"response": [1, 2]}, answer) == ["ĠIt", "<|end|>"]
