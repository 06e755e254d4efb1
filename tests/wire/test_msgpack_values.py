"""Counts in the bytes of msgpack against the objects that they become."""

from __future__ import annotations

import random
import struct
from typing import Any

import msgspec
import pytest

from tokenreward.wire.msgpack_values import count_values

NUMBERS = (0, 127, -1, -32, 200, 60000, 2**31, 2**40, -100, -30000, -(2**31), -(2**40), 1.5)
LENGTHS = (0, 1, 20, 40, 300, 70000)


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.random()
    if depth > 3 or kind < 0.2:
        return rng.choice([*NUMBERS, None, True, False])
    if kind < 0.4:
        length = rng.choice(LENGTHS)
        text = rng.choice(["a" * length, bytes([0x91]) * length])
        return msgspec.msgpack.Ext(7, bytes([0x91]) * length) if kind < 0.25 else text
    length = rng.choice([*range(8), 20])
    if kind < 0.7:
        return [value(rng, depth + 1) for _ in range(length)]
    return {f"{'k' * rng.choice(LENGTHS[:5])}{key}": value(rng, depth + 1) for key in range(length)}


def counts(content: Any) -> tuple[int, int]:
    """Values below the outermost one and bytes of text, as a reader of objects counts them."""
    if isinstance(content, (str, bytes)):
        return 0, len(content)
    if not isinstance(content, (list, dict)):
        return 0, 0
    entries = content.values() if isinstance(content, dict) else content
    below = [counts(entry) for entry in entries]
    num_text_bytes = sum(map(len, content)) if isinstance(content, dict) else 0
    return (
        len(content) + sum(values for values, _ in below),
        num_text_bytes + sum(texts for _, texts in below),
    )


def test_values_and_bytes_of_text_are_counted_at_all_depths() -> None:
    rng = random.Random(1)
    contents: list[Any] = [value(rng) for _ in range(300)]
    contents += [[5] * 20, [5] * 70000, {str(key): [] for key in range(70000)}]
    for content in contents:
        assert count_values(msgspec.msgpack.encode(content), 10**9) == counts(content)


@pytest.mark.parametrize("length", [1, 2, 4, 8, 16])
def test_what_follows_an_extension_is_counted(length: int) -> None:
    content = [msgspec.msgpack.Ext(7, bytes(length)), [1, "ab"], struct.pack("<f", 1.5)]
    assert count_values(msgspec.msgpack.encode(content), 99) == (5, 6)


def test_a_float_of_four_bytes_is_one_value() -> None:
    assert count_values(b"\x92" + b"\xca" + b"\x91" * 4 + b"\xa1a", 99) == (2, 1)


def test_counting_stops_above_the_limit() -> None:
    raw = msgspec.msgpack.encode([[1] * 10, "text", [1] * 10])
    assert count_values(raw, 12) == (13, 0)
    assert count_values(raw, 13) == (23, 4)
