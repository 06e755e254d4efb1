"""Counts in the bytes of JSON against a reader of one character after the other."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from tokenreward.errors import MalformedJson
from tokenreward.wire import json_values, limits
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


@pytest.mark.parametrize("start", range(8))
def test_a_number_is_found_wherever_pieces_end(start: int) -> None:
    text = b"[" + b"1," * start + b'"1",%s]'
    assert has_long_number(text % (b"2" * 30), 29)
    assert not has_long_number(text % (b"2" * 29), 29)
    assert not has_long_number(text % b'2222,"%s",2222' % (b"2" * 30), 29)


class Whole(bytes):
    """Refuses a call that goes through all of it: other threads wait for its end."""

    def count(self, mark: Any, start: Any = 0, end: Any = None) -> int:
        assert end is not None and end - start <= json_values.PIECE_BYTES
        return super().count(mark, start, end)

    def translate(self, *_: Any) -> bytes:
        raise AssertionError("all of it at once")

    replace = find = translate


def test_no_count_goes_through_all_of_the_bytes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_LONG_BYTES", 0)
    monkeypatch.setattr(limits, "MAX_DIGITS", 5)
    content = b'{"a, b": [12345, "123456"], "c": {}}'
    for refuse in (limits.refuse_large_foreign_json, limits.refuse_large_json):
        refuse(Whole(content))
        with pytest.raises(MalformedJson):
            refuse(Whole(content.replace(b"5,", b"56,")))
