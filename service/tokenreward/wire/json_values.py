"""What the bytes of JSON hold, counted without reading them: values, marks outside of strings, and
the lengths of numbers.

All of it takes time in proportion to the bytes. It goes through them in pieces, so that other
threads run every few milliseconds: one pass over 16 MiB would keep Python's lock for tens of them.
It knows JSON's marks, and not what a body is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

PIECE_BYTES = 2**18
_QUOTE = ord('"')
_DIGITS = bytes(ord("0") if chr(code).isdecimal() else ord(" ") for code in range(128)) + bytes(128)


def num_marks(text: bytes, marks: bytes) -> int:
    """How many bytes are among `marks`, in strings as well."""
    number = 0
    for start in range(0, len(text), PIECE_BYTES):
        for mark in marks:
            number += text.count(mark, start, start + PIECE_BYTES)
    return number


def most_values(text: bytes) -> int:
    """At least as many values as JSON has below its outermost one: those commas and brackets count,
    too, that are in strings."""
    return num_marks(text, b",[{")


def num_outside_strings(text: bytes, marks: bytes) -> int:
    """How many bytes of JSON stand outside of strings and are among `marks`."""
    others = bytes(set(range(256)) - set(marks))
    return sum(len(piece.translate(None, others)) for piece in _outside_strings(text))


def has_long_number(text: bytes, max_digits: int) -> bool:
    """Whether a number in JSON has more digits in a row."""
    starts = range(0, len(text), PIECE_BYTES)
    pieces = (text[start : start + PIECE_BYTES] for start in starts)
    if not _have_long_number(pieces, max_digits):
        return False  # not even a text has so many
    return _have_long_number(_outside_strings(text), max_digits)


def _have_long_number(pieces: Iterable[bytes], max_digits: int) -> bool:
    digits = b"0" * (max_digits + 1)
    end = b""  # of the pieces before: a number may go on in the next one
    for piece in pieces:
        joined = end + piece.translate(_DIGITS)
        if digits in joined:
            return True
        end = joined[-max_digits:]
    return False


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
