"""Where answers go: JSON lines or coloured text, a progress bar beside them, and a count of what
failed."""

from __future__ import annotations

import json
import os
import sys
from typing import TextIO

import numpy as np
import numpy.typing as npt

from tokenreward.cli.lines import Line
from tokenreward.cli.progress import Progress
from tokenreward.cli.show import coloured, pieces
from tokenreward_client.rewards import Rewards


class Report:
    """Writes answers in the order it is given them.

    `out` gets one JSON object per line: index, rewards, score, error, and the steps of a scorer
    that finds them. `shown` gets coloured text. Either may be None.
    """

    def __init__(self, out: TextIO | None, shown: TextIO | None, progress: Progress) -> None:
        self._out = out
        self._shown = shown
        self._progress = progress
        self._colour = shown is not None and shown.isatty() and "NO_COLOR" not in os.environ
        self._num_lines = self._num_failed = 0
        self._first_failure = ""

    def take(self, group: list[Line], answers: list[Rewards]) -> None:
        """The next lines and their answers."""
        failed_before = self._num_failed
        if any(stream is not None and stream.isatty() for stream in (self._out, self._shown)):
            self._progress.clear()
        for line, answer in zip(group, answers, strict=True):
            self._count(line, answer)
            if self._out is not None:
                self._out.write(json_line(line, answer))
            if self._shown is not None:
                self._shown.write(self._picture(line, answer))
        for stream in (self._out, self._shown):
            if stream is not None:
                stream.flush()
        num_bytes = sum(line.num_bytes for line in group)
        self._progress.advance(len(group), num_bytes, num_failed=self._num_failed - failed_before)

    def clear(self) -> None:
        """Leave the terminal's line to what is said next."""
        self._progress.clear()

    def finish(self) -> int:
        """Says what failed. The exit code: 1 if any line has no rewards."""
        self._progress.finish()
        if not self._num_failed:
            return 0
        message = (
            f"{self._num_failed} of {self._num_lines} lines have no rewards; the first: "
            f"{self._first_failure}"
        )
        print(f"error: {message}", file=sys.stderr)
        return 1

    def _count(self, line: Line, answer: Rewards) -> None:
        self._num_lines += 1
        if answer.error is not None:
            self._num_failed += 1
            self._first_failure = self._first_failure or said(line, answer)

    def _picture(self, line: Line, answer: Rewards) -> str:
        if line.item is None or answer.rewards is None:
            return f"{said(line, answer)}\n\n"
        score = "" if answer.score is None else f"  score {answer.score:+.4g}"
        texts = pieces(line.item, answer)
        return f"{coloured(texts, answer.rewards.tolist(), colour=self._colour)}{score}\n\n"


def said(line: Line, answer: Rewards) -> str:
    """An error as a person reads it: with the line and the code."""
    if answer.error is None:
        return ""
    message = f"{answer.error.code}: {answer.error.message}"
    return message if line.error is not None else f"line {line.number}: {message}"


def json_line(line: Line, answer: Rewards) -> str:
    """One line of output. Each float32 is written with as few digits as name it."""
    error = None if answer.error is None else answer.error.model_dump()
    entry = {
        "index": line.index,
        "rewards": _short(answer.rewards),
        "score": answer.score,
        "error": error,
    }
    if answer.step_scores is not None and answer.step_ids is not None:
        entry |= {"step_scores": _short(answer.step_scores), "step_ids": answer.step_ids.tolist()}
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _short(numbers: npt.NDArray[np.float32] | None) -> list[float] | None:
    return None if numbers is None else [float(str(number)) for number in numbers]
