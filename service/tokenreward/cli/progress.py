"""A progress bar for people and an occasional line for logs: items, items per second, time left.

It knows no files: progress is bytes done of bytes in all, where the sum is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_BAR_WIDTH = 24
_REDRAW_EVERY_S = 0.1
_LINE_EVERY_S = 10.0


class Progress:
    """Draws on `stream`: over and over in one line of a terminal, else a new line every ten seconds
    and at the end."""

    def __init__(
        self,
        stream: TextIO,
        num_bytes_total: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._num_bytes_total = num_bytes_total
        self._clock = clock
        self._terminal = stream.isatty()
        self._began = self._drawn_at = clock()
        self._num_items = self._num_bytes = self._num_failed = 0

    def advance(self, num_items: int, num_bytes: int, *, num_failed: int = 0) -> None:
        """Count what has been done, and draw if it is time to."""
        self._num_items += num_items
        self._num_bytes += num_bytes
        self._num_failed += num_failed
        now = self._clock()
        if now - self._drawn_at >= (_REDRAW_EVERY_S if self._terminal else _LINE_EVERY_S):
            self._drawn_at = now
            self._draw(end="" if self._terminal else "\n")

    def finish(self) -> None:
        """Draw for the last time."""
        self._draw(end="\n")

    def clear(self) -> None:
        """Make room for other output in a terminal."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def text(self) -> str:
        """`[######        ] 512 items, 230/s, eta 0:03`"""
        elapsed_s = max(self._clock() - self._began, 1e-9)
        parts = [f"{self._num_items} items", f"{self._num_items / elapsed_s:.3g}/s"]
        if self._num_failed:
            parts.append(f"{self._num_failed} failed")
        done = self._num_bytes / self._num_bytes_total if self._num_bytes_total else None
        if done is None:
            return ", ".join(parts)
        if 0 < done < 1:
            parts.append(f"eta {_clock_face(elapsed_s * (1 - done) / done)}")
        filled = round(min(done, 1.0) * _BAR_WIDTH)
        return f"[{'#' * filled}{' ' * (_BAR_WIDTH - filled)}] {', '.join(parts)}"

    def _draw(self, *, end: str) -> None:
        self._stream.write(
            f"\r\x1b[K{self.text()}{end}" if self._terminal else f"{self.text()}{end}"
        )
        self._stream.flush()


def _clock_face(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
