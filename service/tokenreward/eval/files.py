"""Reads data files as rows: JSON lines, one JSON array, the dataset viewer's JSON, CSV and TSV, or
parquet. All but parquet may be compressed with gzip. Errors name the file and line.

It knows formats of files and nothing of what the rows mean.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenreward.eval.conversation import kind_of
from tokenreward.eval.rows import DataRow, EvalError
from tokenreward.eval.tables import table_rows

_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_OTHERS = {
    b"PK\x03\x04": "a zip archive (as .xlsx is)",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard",
    b"ARROW1": "an Arrow file",
}
"""How formats begin that are not read, and what a file of the format is."""
# What Hugging Face's dataset viewer gives: an object whose `rows` hold each row as `row`.
_VIEWER = re.compile(r'\s*\{\s*"(features|rows)"\s*:\s*\[')
_TABLES = {".csv": ",", ".tsv": "\t"}
"""The separator of cells, by the suffix of a file's name."""


def read_rows(file: Path) -> list[DataRow]:
    """Every row of a file. Raises EvalError, OSError."""
    content = file.read_bytes()
    name = file.name.lower()
    if content.startswith(_GZIP):
        name = name.removesuffix(".gz")
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise EvalError(f"{file}: not readable as gzip: {error}") from None
    for start, what in _OTHERS.items():
        if content.startswith(start):
            formats = "JSON lines, JSON, CSV, TSV (each as it is, or with gzip) or parquet"
            raise EvalError(f"{file}: is {what}, which is not read: unpack it, or write {formats}")
    separator = _TABLES.get(Path(name).suffix)
    if content.startswith(_PARQUET):
        values = _parquet_values(content, file)
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise EvalError(f"{file} line {line}: not UTF-8") from None
        values = _values(text, file) if separator is None else table_rows(text, separator, file)
    rows = []
    for where, value in values:
        if not isinstance(value, dict):
            raise EvalError(f"{where}: must be an object, got {kind_of(value)}")
        rows.append(DataRow(where, value, file, has_cells=separator is not None))
    if not rows:
        raise EvalError(f"{file}: holds no rows")
    return rows


def _parquet_values(content: bytes, file: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a parquet file, with what messages call it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        message = "reading parquet needs pyarrow: pip install 'tokenreward[parquet]'"
        raise EvalError(f"{file}: {message}") from None
    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        values = table.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise EvalError(f"{file}: not readable as parquet: {str(error)[:200]}") from None
    for number, value in enumerate(values, start=1):
        yield f"{file} row {number}", value


def _values(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    """Each value of a file's text, with what messages call it."""
    if _VIEWER.match(text):
        entries = _parse(text, str(file)).get("rows")
        if not isinstance(entries, list):
            raise EvalError(f"{file}: `rows` must be a list, got {kind_of(entries)}")
        for number, entry in enumerate(entries, start=1):
            yield f"{file} row {number}", entry.get("row") if isinstance(entry, dict) else entry
        return
    if text.lstrip().startswith("["):
        for number, value in enumerate(_parse(text, str(file)), start=1):
            yield f"{file} row {number}", value
        return
    # Not splitlines: a string in JSON may hold U+2028 and the like, which end no line of a file.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file} line {number}"
            yield where, _parse(line, where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise EvalError(f"{where}: not valid JSON: nested too deep") from None
    except ValueError as error:  # JSONDecodeError, and integers of more digits than Python converts
        raise EvalError(f"{where}: not valid JSON: {error}") from None
