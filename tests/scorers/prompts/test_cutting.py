"""Where the steps of a response begin and end: by the item's steps, by tags, by separators."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from tokenreward.errors import UnsupportedText
from tokenreward.scorers._prompts.cutting import pieces_of


def cut(
    text: str,
    *,
    steps: Any = None,
    tag: str = "<t>",
    separator: str = "\n\n",
    is_special: bool = False,
) -> list[str]:
    """The texts of the pieces that hold more than white space."""
    pieces = pieces_of(text, steps, separator=separator, tag=tag, is_special=is_special)
    texts = [text[start:end] for start, end in pieces]
    return [piece for piece in texts if piece.strip()]


@pytest.mark.parametrize(
    ("text", "options", "texts"),
    [
        ("a\n\nb", {}, ["a", "b"]),
        ("a<t>b\n\nc", {}, ["a<t>b", "c"]),
        ("a<t>b\n\nc", {"is_special": True}, ["a", "b\n\nc"]),
        ("a<t>b\n\nc<t>", {}, ["a", "b\n\nc"]),
        ("a<t>b <t> \n", {}, ["a", "b "]),
        ("1 + 2\n\n3 + 4", {"tag": " +"}, ["1 + 2", "3 + 4"]),
        ("a ки\n\nb ки", {"tag": " ки"}, ["a ", "\n\nb "]),
        ("руки\n\nруки", {"tag": " ки"}, ["руки", "руки"]),  # noqa: RUF001
        ("a\n\nb\n\n", {"tag": "\n"}, ["a", "b"]),
        ("a\nb\n\nc", {"tag": "\n", "separator": "\n"}, ["a", "b", "c"]),
        ("a\n\nb\n\n\n\n\nc", {"tag": " \n\n\n\n\n"}, ["a", "b", "\nc"]),
        ("a\n\nb \n\n\n\n\nc", {"tag": "\n\n\n\n\n"}, ["a\n\nb ", "c"]),
    ],
)
def test_text_is_cut_at_tags_that_it_spells_else_at_separators(
    text: str, options: dict[str, Any], texts: list[str]
) -> None:
    assert cut(text, **options) == texts


def test_end_of_a_word_in_a_step_of_the_item_is_no_tag() -> None:
    text = "руки ки\nкулаки ки"  # noqa: RUF001
    assert cut(text, steps=["руки", "кулаки ки"], tag=" ки") == ["руки", "кулаки"]
    assert cut("руки\nдва", steps=[[0, 4], [5, 8]], tag=" ки") == ["руки", "два"]  # noqa: RUF001


def test_step_of_a_million_tags_takes_no_time_for_each() -> None:
    began = time.perf_counter()
    assert cut("a", steps=["a" + "~" * 1_000_000], tag="~") == ["a"]
    assert time.perf_counter() - began < 5.0


@pytest.mark.parametrize(
    ("text", "steps", "texts"),
    [
        ("a\n\nb", ["a\n\nb"], ["a\n\nb"]),
        (" a b ", ["a", "b "], ["a", "b"]),
        ("a<t>b<t>", ["a", "b"], ["a", "b"]),
        ("a<t>\nb<t>", ["a<t>", "b<t>\n"], ["a", "b"]),
        ("ab", ["a", "b"], ["a", "b"]),
        ("a b", [[0, 1], [2, 3]], ["a", "b"]),
        ("a b", [[0, 2], [2, 3]], ["a", "b"]),
        ("a<t>b<t>", [[0, 4], [4, 8]], ["a", "b"]),
        ("a b", list(np.array([[0, 2], [2, 3]], np.int32)), ["a", "b"]),
    ],
)
def test_steps_of_the_item_are_found_without_the_tags_around_them(
    text: str, steps: Any, texts: list[str]
) -> None:
    assert cut(text, steps=steps) == texts


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["a", "c"], "does not go on with this step"),
        (["b"], "does not go on with this step"),
        (["a"], "goes on behind the last step"),
        (["a", "", "b"], "no text in this step"),
        ([[0, 1]], "goes on behind the last step"),
        ([[2, 3]], "other text between"),
        ([[0, 1], [1, 0]], "ascending ranges of 3 characters, and this is"),
        ([[0, 1], [1, 4]], "ascending ranges of 3 characters, and this is"),
    ],
)
def test_steps_that_are_not_the_response_are_refused(steps: Any, message: str) -> None:
    with pytest.raises(UnsupportedText, match=message):
        cut("a b", steps=steps)


def test_a_long_run_of_white_space_costs_no_more_than_its_length() -> None:
    text = "a" + " \n" * 200_000 + "b"
    assert cut(text, steps=["a", "b"]) == ["a", "b"]
    assert cut(text, steps=["a", "b"], tag="\n") == ["a", "b"]
    with pytest.raises(UnsupportedText, match="does not go on"):
        cut(text, steps=["a", "c"])
