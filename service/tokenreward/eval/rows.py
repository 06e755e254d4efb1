"""One row of a data file, and its fields by type. Errors name the file, line and field.

It knows no formats of files, and nothing of what the rows mean. Fields that no kind of data reads
are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenreward.errors import InvalidField
from tokenreward.eval.conversation import Prompt, PromptAs, conversation, kind_of


class EvalError(Exception):
    """The evaluation cannot go on; the message is for the person who asked for it.

    If a data file is not what it should be, the message names file, line and field.
    """


@dataclass(frozen=True, slots=True)
class DataRow:
    """One object of a data file, or one line of a table.

    `where` is what messages call it: `pairs.jsonl line 3`, or `chat.json row 3`. `has_cells` says
    that numbers and flags are texts: a table of text has no types.
    """

    where: str
    fields: dict[str, Any]
    file: Path
    has_cells: bool = False

    def wrong(self, field: str, message: str) -> EvalError:
        """An error about one field."""
        return EvalError(f"{self.where}: `{field}` {message}")

    def get(self, field: str) -> Any:
        """The value of a field. Raises EvalError if the row lacks it."""
        if field not in self.fields:
            raise self.wrong(field, "is required")
        return self.fields[field]

    def scalar(self, field: str) -> Any:
        """The value of a field that holds no texts: of a table's cell, what it spells as JSON, or
        as Python prints true and false.

        Raises:
            EvalError: The row lacks the field.
        """
        value = self.get(field)
        if not self.has_cells or not isinstance(value, str):
            return value
        try:
            return json.loads(value.strip().lower())
        except ValueError:
            return value

    def text(self, field: str) -> str:
        """A field that is a string. Raises EvalError if it is anything else."""
        value = self.get(field)
        if not isinstance(value, str):
            raise self.wrong(field, f"must be a string, got {kind_of(value)}")
        return value

    def conversation(self, field: str, prompt_as: PromptAs) -> tuple[Prompt, str]:
        """The prompt, and the response that a field holds, as `conversation` reads them.

        Raises:
            EvalError: The row lacks the field, or holds no such conversation.
        """
        self.get(field)
        try:
            return conversation(self.fields, field, prompt_as=prompt_as)
        except InvalidField as error:
            raise self.wrong(error.param or field, error.message) from None

    def texts(self, field: str, *, num: int | None = None) -> list[str]:
        """A field that is a list of strings.

        Args:
            field: Its name.
            num: How many strings it must hold; by default one or more.

        Raises:
            EvalError: It is anything else.
        """
        value = self.get(field)
        expected = "a list of one string or more"
        if num is not None:
            expected = f"a list of {num} strings"
        if not isinstance(value, list) or not value or len(value) != (num or len(value)):
            raise self.wrong(field, f"must be {expected}, got {kind_of(value)}")
        for index, entry in enumerate(value):
            if not isinstance(entry, str):
                raise self.wrong(f"{field}[{index}]", f"must be a string, got {kind_of(entry)}")
        return value

    def flags(self, field: str, *, num: int, of: str) -> list[bool]:
        """A field that is a list of zeros and ones, or of false and true.

        Args:
            field: Its name.
            num: How many flags it must hold.
            of: What one flag is about, for the message: `character`.

        Raises:
            EvalError: It is anything else.
        """
        value = self.scalar(field)
        if not isinstance(value, list) or len(value) != num:
            message = f"must be a list of {num} flags, one per {of}, got {kind_of(value)}"
            raise self.wrong(field, message)
        for index, entry in enumerate(value):
            if not isinstance(entry, int) or entry not in (0, 1):
                raise self.wrong(f"{field}[{index}]", f"must be 0 or 1, got {kind_of(entry)}")
        return [bool(entry) for entry in value]

    def integers(self, field: str, *, least: int, most: int) -> list[int]:
        """A field that is an integer or a list of integers, each from `least` to `most`.

        Raises:
            EvalError: It is anything else.
        """
        value = self.scalar(field)
        entries = value if isinstance(value, list) else [value]
        for entry in entries:
            if type(entry) is not int or not least <= entry <= most:
                message = f"must be a whole number from {least} to {most}, got {kind_of(entry)}"
                raise self.wrong(field, message)
        return entries

    def ranges(self, field: str, *, noun: str, allow_empty: bool) -> Iterator[tuple[int, int]]:
        """A field that is a list of pairs of integers, each checked when it is taken.

        Whether the pairs fit a text is not checked.

        Args:
            field: Its name.
            noun: What the pairs are, for the message: `ranges`.
            allow_empty: The list may hold no pair.

        Raises:
            EvalError: It is anything else.
        """
        value = self.scalar(field)
        if not isinstance(value, list) or not (value or allow_empty):
            raise self.wrong(field, f"must be a list of [start, end] {noun}, got {kind_of(value)}")
        for index, entry in enumerate(value):
            # `type`, not isinstance: JSON's true and false are no positions.
            if not isinstance(entry, list) or [type(end) for end in entry] != [int, int]:
                raise self.wrong(f"{field}[{index}]", f"must be [start, end], got {kind_of(entry)}")
            yield entry[0], entry[1]
