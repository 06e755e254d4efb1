"""Writes answers as JSON lines or as coloured text, beside a progress bar, and counts the failures.

It knows streams and lines; it knows no HTTP and no scorers.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

import numpy as np
import numpy.typing as npt

from tokenreward.cli.lines import Line
from tokenreward.cli.progress import Progress
from tokenreward.cli.show import coloured, unit_texts
from tokenreward.display import safe_text
from tokenreward.errors import described
from tokenreward_client.rewards import Rewards


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
    message = described(answer.error.message, answer.error.param)
    return safe_text(f"line {line.number}: {answer.error.code}: {message}")


def json_line(line: Line, answer: Rewards) -> str:
    """One line of output. Each float32 is written with as few digits as name it."""
    entry = {
        "index": line.index,
        "rewards": _short(answer.rewards),
        "score": answer.score,
        "error": None if answer.error is None else answer.error.model_dump(),
    }
    if answer.step_scores is not None and answer.step_ids is not None:
        entry |= {"step_scores": _short(answer.step_scores), "step_ids": answer.step_ids.tolist()}
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _short(numbers: npt.NDArray[np.float32] | None) -> list[float] | None:
    return None if numbers is None else [float(str(number)) for number in numbers]
