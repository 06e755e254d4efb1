"""JSONL in: each line becomes an item, or an error that names the line; the others are not lost.

It reads a group at a time and holds no more. It knows no scorers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tokenreward.errors import InvalidField, MalformedJson, RewardError
from tokenreward.wire import ErrorDetail
from tokenreward_client.errors import BadArgument
from tokenreward_client.items import parcel

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `index` counts these from 0, `number` counts all lines from 1.
    `item` or `error`."""

    index: int
    number: int
    num_bytes: int
    item: dict[str, Any] | None = None
    error: ErrorDetail | None = None


def read_groups(stream: BinaryIO, size: int) -> Iterator[list[Line]]:
    """Lines in order, `size` at a time."""
    group: list[Line] = []
    index = num_bytes = 0
    for number, raw in enumerate(stream, start=1):
        num_bytes += len(raw)
        content = (raw.removeprefix(_BOM) if number == 1 else raw).strip()
        if not content:
            continue
        group.append(_line(content, index, number=number, num_bytes=num_bytes))
        index, num_bytes = index + 1, 0
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _line(content: bytes, index: int, *, number: int, num_bytes: int) -> Line:
    try:
        return Line(index, number, num_bytes, item=_item(content))
    except RewardError as error:
        return Line(index, number, num_bytes, error=ErrorDetail.model_validate(error.detail()))


def _item(content: bytes) -> dict[str, Any]:
    try:
        item = json.loads(content)
    except UnicodeDecodeError:
        raise MalformedJson("not UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise MalformedJson(f"not valid JSON: {error}") from None
    if not isinstance(item, dict):
        raise InvalidField("must be an object with `prompt` and `response`")
    try:
        parcel(item, "item")
    except BadArgument as error:
        param = (error.param or "").removeprefix("item").removeprefix(".")
        raise InvalidField(str(error.args[0]), param=param or None) from None
    return item
