"""Reads a table of text, CSV or TSV: a line of names, then a line of cells for each row.

Every cell is a text. A column holds lists or messages if all of its cells are JSON lists (of texts
or objects) or JSON messages; what else a cell spells, as a number or a list of flags, is read where
it is needed (see `DataRow.scalar`). An empty cell is no value. It knows nothing of what the columns
mean.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenreward.eval.rows import EvalError

_MAX_CELL_CHARACTERS = 2**30
_OF_OBJECTS = ("question", "label")  # PRM800K's columns: no text of a prompt is a JSON object
_PYTHON_LIST = re.compile(r"\[\s*(\{\s*'|'|\"[^\"]*\"\s+[\"']|True\b|False\b|None\b)|array\(")


def table_rows(text: str, separator: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a table, with what messages call it.

    Args:
        text: The file's text. A comma may be a semicolon, as some spreadsheets write it.
        separator: What separates cells.
        file: The file, for messages.

    Raises:
        EvalError: The text is no table, or a column holds lists as Python prints them.
    """
    names_line = text.split("\n", 1)[0]
    if separator == "," and "," not in names_line and ";" in names_line:
        separator = ";"
    limit = csv.field_size_limit(_MAX_CELL_CHARACTERS)  # 131,072 by default
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise EvalError(f"{file}: not readable as a table: {error}") from None
    finally:
        csv.field_size_limit(limit)
    names, *rows = lines or [[]]
    names = [name.strip() for name in names]
    twice = [name for name, num in Counter(names).items() if num > 1]
    if twice:
        raise EvalError(f"{file}: two columns are named `{twice[0][:40]}`")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            message = f"has {len(row)} cells, the line of names has {len(names)}"
            raise EvalError(f"{file} row {number}: {message}")
    columns = {}
    for place, name in enumerate(names):
        columns[name] = _column(name, [row[place] for row in rows], file)
    for number in range(len(rows)):
        fields = {name: cells[number] for name, cells in columns.items()}
        yield f"{file} row {number + 1}", fields


def _column(name: str, cells: Sequence[str], file: Path) -> list[Any]:
    """The values of a column."""
    present = [cell for cell in cells if cell]
    if not all(cell.lstrip().startswith(("[", "{", "array(")) for cell in present):
        return [cell or None for cell in cells]
    values: dict[str, Any] = {}
    try:
        for cell in present:
            values[cell] = json.loads(cell)
    except (ValueError, RecursionError):
        if all(_PYTHON_LIST.match(cell.lstrip()) for cell in present):
            message = "is a list as Python prints it, which cannot be read back for sure"
            raise EvalError(
                f"{file} row 1: `{name}` {message}: write it with json.dumps, or write JSON lines"
            ) from None
        return [cell or None for cell in cells]
    for value in values.values():
        if isinstance(value, list):
            is_value = all(isinstance(entry, (str, dict)) for entry in value)
        else:
            is_value = name in _OF_OBJECTS or bool({"role", "from"} & value.keys())
        if not is_value:
            return [cell or None for cell in cells]
    return [values[cell] if cell else None for cell in cells]
