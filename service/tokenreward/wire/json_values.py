"""What the bytes of JSON hold, counted without reading them: values, marks outside of strings, and
the lengths of numbers.

All of it takes time in proportion to the bytes, and lets other threads run every millisecond or
so. It knows JSON's marks, and not what a body is for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PIECE_BYTES = 2**20
_QUOTE = ord('"')
_DIGITS = bytes(ord("0") if chr(code).isdecimal() else ord(" ") for code in range(128)) + bytes(128)


def most_values(text: bytes) -> int:
    """At least as many values as JSON has below its outermost one: those commas and brackets count,
    too, that are in strings."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def num_outside_strings(text: bytes, marks: bytes) -> int:
    """How many bytes of JSON stand outside of strings and are among `marks`."""
    others = bytes(set(range(256)) - set(marks))
    return sum(len(piece.translate(None, others)) for piece in _outside_strings(text))


def has_long_number(text: bytes, max_digits: int) -> bool:
    """Whether a number in JSON has more digits in a row."""
    digits = b"0" * (max_digits + 1)
    if digits not in text.translate(_DIGITS):
        return False  # not even a text has so many
    return digits in b"".join(_outside_strings(text)).translate(_DIGITS)


def _outside_strings(text: bytes) -> Iterator[bytes]:
    """What stands outside of the strings of JSON, piece by piece. The quotes at both ends of a
    string are there, too, or numbers on both sides of it would be one."""
    is_escaped, is_inside = False, False
    for start in range(0, len(text), PIECE_BYTES):
        piece = text[start + is_escaped : start + PIECE_BYTES]
        piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        is_escaped = piece.endswith(b"\\")  # and what it escapes begins the next piece
        codes = np.frombuffer(piece, np.uint8)
        is_quote = codes == _QUOTE
        # Whether a string has begun and not ended: an odd number of quotes, up to this byte.
        inside = np.logical_xor.accumulate(is_quote) ^ is_inside
        if len(codes):
            is_inside = bool(inside[-1])
        yield codes[~inside | is_quote].tobytes()
