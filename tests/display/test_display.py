"""Text of others cannot steer what shows it, and rewards have one palette."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable

import pytest

from tokenreward.display import (
    ABOVE,
    BELOW,
    ZERO,
    colour_of,
    full_strength,
    safe_html,
    safe_text,
)

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
BAD = "\N{REPLACEMENT CHARACTER}"


def pictures(text: str) -> str:
    return safe_text(text, keep="\n\t", pictures=True)


def test_every_character_that_steers_is_replaced_and_every_other_one_stays() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    steering = {char for char in every if unicodedata.category(char) in ("Cc", "Cs")}
    directions = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    steering |= {char for char in every if unicodedata.bidirectional(char) in directions}
    steering |= set(DIRECTIONS)
    expected = "".join(BAD if char in steering else char for char in every)
    assert safe_text(every) == expected


@pytest.mark.parametrize("show", [safe_text, safe_html, pictures])
@pytest.mark.parametrize("char", DIRECTIONS)
def test_a_change_of_the_writing_direction_is_stopped(
    show: Callable[[str], str], char: str
) -> None:
    assert show(f"a{char}b") == f"a{BAD}b"


@pytest.mark.parametrize("show", [safe_text, safe_html])
def test_an_escape_sequence_is_stopped(show: Callable[[str], str]) -> None:
    assert show("\x1b[2J\x9b31m") == f"{BAD}[2J{BAD}31m"


def test_controls_are_shown_as_their_symbols_where_pictures_are_wanted() -> None:
    assert pictures("\x1b[2J\x00\x07\x7f\x9b\ud800") == f"␛[2J␀␇␡{BAD}{BAD}"


def test_line_breaks_and_tabs_stay_only_where_they_are_kept() -> None:
    assert safe_text("a\n\tb\r") == f"a{BAD}{BAD}b{BAD}"
    assert safe_text("a\n\tb\r", keep="\n\t") == f"a\n\tb{BAD}"
    assert pictures("a\n\tb\r") == "a\n\tb␍"


def test_text_of_others_is_no_markup() -> None:
    assert safe_html("<b a='1'>\"&\n") == "&lt;b a=&#x27;1&#x27;&gt;&quot;&amp;\n"
    assert safe_html(None) == "None"


def test_right_to_left_letters_are_text_like_any_other() -> None:
    assert safe_text("שלום مرحبا") == "שלום مرحبا"


def test_colours_run_from_red_over_white_to_green() -> None:
    assert (colour_of(-1.0), colour_of(0.0), colour_of(1.0)) == (BELOW, ZERO, ABOVE)
    assert (colour_of(-7.0), colour_of(7.0)) == (BELOW, ABOVE)
    assert colour_of(0.5) == (154, 212, 169)


def test_the_largest_reward_has_the_full_colour_and_any_scale_does_where_all_are_zero() -> None:
    assert full_strength([0.5, -2.0]) == 2.0
    assert full_strength([0.0]) == full_strength([]) == 1.0
