"""Data files as rows: JSON lines, or one JSON array. What is wrong with a file is said with its
line and field.

It knows JSON and nothing of what the rows mean. Fields that nobody asks for are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class EvalError(Exception):
    """The evaluation cannot go on; the message is for the person who asked for it."""


class DataError(EvalError):
    """A data file is not what it should be; the message names file, line and field."""


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object. `where` is what messages call it: `pairs.jsonl line 3`, or `chat.json row
    3`."""

    where: str
    fields: dict[str, Any]
    file: Path

    def wrong(self, field: str, message: str) -> DataError:
        """An error about one field."""
        return DataError(f"{self.where}: `{field}` {message}")

    def get(self, field: str) -> Any:
        """Raises DataError if it is not there."""
        if field not in self.fields:
            raise self.wrong(field, "is required")
        return self.fields[field]

    def text(self, field: str) -> str:
        """Raises DataError if it is not a string."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.wrong(field, f"must be a string, got {kind_of(value)}")
        return value

    def texts(self, field: str, *, num: int | None = None) -> list[str]:
        """A list of strings, `num` of them. Raises DataError."""
        value = self.get(field)
        wanted = f"a list of {num} strings" if num is not None else "a list of one string or more"
        if not isinstance(value, list) or not value or (num is not None and len(value) != num):
            raise self.wrong(field, f"must be {wanted}, got {kind_of(value)}")
        for index, entry in enumerate(value):
            if not isinstance(entry, str):
                raise self.wrong(f"{field}[{index}]", f"must be a string, got {kind_of(entry)}")
        return value

    def flags(self, field: str, *, num: int, of: str) -> list[bool]:
        """`num` zeros and ones (or false and true). Raises DataError."""
        value = self.get(field)
        if not isinstance(value, list) or len(value) != num:
            raise self.wrong(
                field, f"must be a list of {num} flags, one per {of}, got {kind_of(value)}"
            )
        for index, entry in enumerate(value):
            if not isinstance(entry, int) or entry not in (0, 1):
                raise self.wrong(f"{field}[{index}]", f"must be 0 or 1, got {kind_of(entry)}")
        return [bool(entry) for entry in value]


def read_rows(file: Path) -> list[Row]:
    """Every row of a file. Raises DataError, OSError."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file} line {line}: not UTF-8") from None
    whole = text.lstrip().startswith("[")
    rows = [
        _row(value, where, file)
        for where, value in (_array(text, file) if whole else _lines(text, file))
    ]
    if not rows:
        raise DataError(f"{file}: holds no rows")
    return rows


def kind_of(value: object) -> str:
    """What a value is, without quoting text: `a list of length 2`, `true`, `a string`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return f"{value}" if abs(value) < 10**12 else "a large number"
    if isinstance(value, str):
        return "a string"
    return f"{'a list' if isinstance(value, list) else 'an object'} of length {len(value)}"  # type: ignore[arg-type]


def _row(value: Any, where: str, file: Path) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be an object, got {kind_of(value)}")
    return Row(where, value, file)


def _array(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    values = _parsed(text, str(file))
    return ((f"{file} row {number}", value) for number, value in enumerate(values, start=1))


def _lines(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines: a string in JSON may hold U+2028 and the like, which end no line of a file.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file} line {number}"
            yield where, _parsed(line, where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{where}: not valid JSON: nested too deep") from None
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python converts
        raise DataError(f"{where}: not valid JSON: {error}") from None
