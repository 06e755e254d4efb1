"""JSONL in and answers out.

Each line becomes an item, or an error that names the line. Answers become JSON lines or coloured
text, and failures are counted.

It reads a group of lines at a time and holds no more. It knows no HTTP and no scorers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TextIO

import numpy as np
import numpy.typing as npt

from tokenreward.cli.progress import Progress
from tokenreward.cli.show import coloured, unit_texts
from tokenreward.display import safe_text
from tokenreward.errors import InvalidField, MalformedJson, RewardError, described
from tokenreward.eval.conversation import RESPONSE_FIELDS, conversation
from tokenreward.wire import ErrorDetail, Item
from tokenreward.wire.reply import INTEGER_TABLES, TABLES
from tokenreward_client import BadArgument, Rewards
from tokenreward_client.items import check_item

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank, as an item or as the error that makes it none.

    Attributes:
        index: Counts the lines that are not blank, from 0.
        number: Counts all lines, from 1.
        num_bytes: Its length, with the blank lines before it.
    """

    index: int
    number: int
    num_bytes: int
    item: dict[str, Any] | None = None
    error: ErrorDetail | None = None


def read_groups(stream: BinaryIO, size: int) -> Iterator[list[Line]]:
    """The lines of a file in order, `size` at a time; blank ones are skipped."""
    group: list[Line] = []
    index = num_bytes = 0
    for number, raw in enumerate(stream, start=1):
        num_bytes += len(raw)
        content = raw.removeprefix(_BOM) if number == 1 else raw
        content = content.strip()
        if not content:
            continue
        item, error = None, None
        try:
            item = _item(content)
        except RewardError as refusal:
            error = ErrorDetail.of(refusal.within(f"line {number}"))
        group.append(Line(index, number, num_bytes, item, error))
        index, num_bytes = index + 1, 0
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _item(content: bytes) -> dict[str, Any]:
    """The item that a line holds.

    Raises:
        RewardError: It holds none, or one that the client would refuse with all others of its
            request.
    """
    try:
        # Not json.loads alone: it would take the first line of a UTF-16 file for what it is.
        item = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise MalformedJson("not UTF-8") from None
    # A ValueError that is no JSONDecodeError: an integer of more digits than Python converts.
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"not valid JSON: {error}") from None
    if not isinstance(item, dict):
        raise InvalidField("must be an object with `prompt` and `response`")
    fields: dict[str, Any] = item
    if "response" not in fields:
        fields = _from_trl(fields)
    try:
        check_item(fields)
    except BadArgument as error:
        raise InvalidField(str(error.args[0]), param=error.param) from None
    return fields


def _from_trl(fields: dict[str, Any]) -> dict[str, Any]:
    """The item of a line whose response is a `completion`, or ends its `messages`; a line that has
    neither comes back as it is. Fields that no item has are left out.

    Raises:
        InvalidField: The line holds no such conversation, or it holds a pair.
    """
    if "chosen" in fields and "rejected" in fields:
        message = "is one of a pair, which `tokenreward eval` judges; alone it is a `response`"
        raise InvalidField(message, param="chosen")
    field = next((name for name in RESPONSE_FIELDS if name in fields), None)
    if field is None:
        return fields
    prompt, response = conversation(fields, field, prompt_as="raw")
    item = {name: value for name, value in fields.items() if name in Item.model_fields}
    return {**item, "prompt": prompt, "response": response}


class Report:
    """Writes answers in the order in which they are handed over.

    Args:
        out: Gets one JSON object per line: index, rewards, score, error, and the steps of a scorer
            that finds them. None: nothing.
        pictures: Gets coloured text. None: nothing.
        progress: Counts the lines.
    """

    def __init__(self, out: TextIO | None, pictures: TextIO | None, progress: Progress) -> None:
        self._out = out
        self._pictures = pictures
        self._progress = progress
        self._colour = False
        if pictures is not None:
            self._colour = pictures.isatty() and "NO_COLOR" not in os.environ
        self._num_lines = self._num_failed = 0
        self._first_failure = ""

    def take(self, group: list[Line], answers: list[Rewards]) -> None:
        """Write the next lines' answers."""
        num_failed_before = self._num_failed
        streams = [stream for stream in (self._out, self._pictures) if stream is not None]
        if any(stream.isatty() for stream in streams):
            self._progress.clear()
        for line, answer in zip(group, answers, strict=True):
            self._num_lines += 1
            if answer.error is not None:
                self._num_failed += 1
                self._first_failure = self._first_failure or error_text(line, answer)
            if self._out is not None:
                self._out.write(json_line(line, answer))
            if self._pictures is not None:
                self._pictures.write(self._picture(line, answer))
        for stream in streams:
            stream.flush()
        num_bytes = sum(line.num_bytes for line in group)
        num_failed = self._num_failed - num_failed_before
        self._progress.advance(len(group), num_bytes, num_failed=num_failed)

    def clear(self) -> None:
        """Clear the terminal's line for other output."""
        self._progress.clear()

    def finish(self) -> int:
        """Say how many lines failed. Returns the exit code: 1 if any line has no rewards."""
        self._progress.finish()
        if not self._num_failed:
            return 0
        message = (
            f"{self._num_failed} of {self._num_lines} lines have no rewards; the first: "
            f"{self._first_failure}"
        )
        print(f"error: {message}", file=sys.stderr)
        return 1

    def _picture(self, line: Line, answer: Rewards) -> str:
        if line.item is None or answer.rewards is None:
            return f"{error_text(line, answer)}\n\n"
        texts = unit_texts(line.item, answer)
        picture = coloured(texts, answer.rewards.tolist(), colour=self._colour)
        if answer.score is not None:
            picture += f"  score {answer.score:+.4g}"
        return f"{picture}\n\n"


def error_text(line: Line, answer: Rewards) -> str:
    """An answer's error for a terminal, with its line and code; empty without an error."""
    if answer.error is None:
        return ""
    param = (answer.error.param or "").removeprefix(f"line {line.number}").removeprefix(".")
    message = described(answer.error.message, param or None)
    return safe_text(f"line {line.number}: {answer.error.code}: {message}")


def json_line(line: Line, answer: Rewards) -> str:
    """One line of output. Each float32 is written with as few digits as name it."""
    entry: dict[str, Any] = {
        "index": line.index,
        "rewards": None if answer.rewards is None else _short(answer.rewards),
        "score": answer.score,
        "error": None if answer.error is None else asdict(answer.error),
    }
    if answer.scores is not None:
        entry["scores"] = dict(answer.scores)
    if answer.step_scores is not None and answer.step_ids is not None:
        entry |= {"step_scores": _short(answer.step_scores), "step_ids": answer.step_ids.tolist()}
    for name in TABLES:
        table = getattr(answer, name)
        if table is not None and name in INTEGER_TABLES:
            entry[name] = table.tolist()
        elif table is not None:
            entry[name] = [_short(row) for row in table]
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _short(numbers: npt.NDArray[np.float32]) -> list[float]:
    return [float(str(number)) for number in numbers]
