"""Counts in the bytes of JSON against a reader of one character after the other."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from tokenreward.wire import json_values
from tokenreward.wire.json_values import has_long_number, most_values, num_outside_strings

TEXTS = ("a", "[", "\\", '"', '\\"[,{', "", '{"[,', "12345678", 'x\\\\"[,')
MARKS = b"[{,"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces end within strings and within escapes."""
    monkeypatch.setattr(json_values, "PIECE_BYTES", 7)


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth > 3 or kind < 0.3:
        return rng.choice([*TEXTS, 1, 12345678, None, -1.5])
    if kind < 0.65:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {f"{rng.choice(TEXTS)}{key}": value(rng, depth + 1) for key in range(rng.randint(0, 4))}


def without_texts(text: str) -> str:
    """The same JSON whose strings are all empty, read from left to right."""
    outside, is_inside, is_escaped = "", False, False
    for character in text:
        if not is_inside or (character == '"' and not is_escaped):
            outside += character
            is_inside ^= character == '"'
        is_escaped = is_inside and character == "\\" and not is_escaped
    return outside


def test_marks_outside_of_strings_are_counted_whatever_the_strings_hold() -> None:
    rng = random.Random(1)
    for _ in range(500):
        text = json.dumps(value(rng))
        outside = without_texts(text)
        count = sum(outside.count(mark) for mark in "[{,")
        assert num_outside_strings(text.encode(), MARKS) == count
        assert most_values(text.encode()) >= count
        assert has_long_number(text.encode(), 7) == bool(re.search("[0-9]{8}", outside))


@pytest.mark.parametrize("text", [b"", b'"', b"\\", b'"\\', b'"' * 20, b"\\" * 21, b"\xff" * 20])
def test_what_is_no_json_is_counted_somehow(text: bytes) -> None:
    assert num_outside_strings(text, MARKS) == 0
    assert not has_long_number(text, 3)
