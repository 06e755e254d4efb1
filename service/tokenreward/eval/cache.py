"""Answers that need not be asked for again: one JSON line each, appended as they come.

A line's key is a hash of everything that the answer depends on, so that another model, version or
option finds nothing. A line that cannot be read (the last one of a run that was killed) counts as
not there. It knows no HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenreward.eval.answer import Answer, from_record, to_record

_FORMAT = 1


def key_of(*parts: Any) -> str:
    """A hash of JSON values; the order of an object's keys does not count."""
    content = json.dumps([_FORMAT, *parts], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode("ascii")).hexdigest()


class Cache:
    """One file. `num_unreadable` counts the lines that the last `read` could make nothing of,
    `num_kept` the answers that were appended."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.num_unreadable = self.num_kept = 0

    def read(self, wanted: Iterable[str]) -> dict[str, Answer]:
        """The answers to these keys, as far as they are there; of two the later stands. Raises
        OSError."""
        missing, found = set(wanted), {}
        self.num_unreadable = 0
        if not self.file.exists():
            return {}
        with self.file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                    if record["key"] in missing:
                        found[record["key"]] = from_record(record)
                except (ValueError, KeyError, TypeError, RecursionError):
                    self.num_unreadable += 1
        return found

    def append(self, answers: Mapping[str, Answer]) -> None:
        """Keep these answers, those with an error apart. Raises OSError."""
        records = [
            {"key": key, **to_record(answer)}
            for key, answer in answers.items()
            if answer.error is None
        ]
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        if not text:
            return
        with self.file.open("ab+") as file:
            # What a killed run left half-written must not take the next line with it.
            if file.tell() and not _ends_line(file):
                text = "\n" + text
            file.write(text.encode("ascii"))
        self.num_kept += len(records)


def _ends_line(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")
