"""A progress bar for a terminal, or a line now and then for a log: items, items per second, time
left.

It reads no files: its caller counts items and bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

_BAR_WIDTH = 24
_REDRAW_EVERY_S = 0.1
_LINE_EVERY_S = 10.0


class Progress:
    """Shows how far a run is, in one line that is drawn again and again.

    Without a terminal there is a new line every ten seconds, and one at the end.

    Args:
        stream: Where it is drawn.
        num_bytes_total: The work that there is; None if it is not known, and then there is no bar.
        clock: Seconds.
    """

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
        self._is_terminal = stream.isatty()
        self._draw_every_s = _REDRAW_EVERY_S if self._is_terminal else _LINE_EVERY_S
        self._began = self._drawn_at = clock()
        self._num_items = self._num_bytes = self._num_failed = 0

    def advance(self, num_items: int, num_bytes: int, *, num_failed: int = 0) -> None:
        """Counts finished work, and draws from time to time."""
        self._num_items += num_items
        self._num_bytes += num_bytes
        self._num_failed += num_failed
        now = self._clock()
        if now - self._drawn_at >= self._draw_every_s:
            self._drawn_at = now
            self._draw(is_last=False)

    def finish(self) -> None:
        """Draws for the last time."""
        self._draw(is_last=True)

    def clear(self) -> None:
        """Empties the line in a terminal, for other output."""
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def text(self) -> str:
        """`[######        ] 512 items, 230/s, eta 0:03`"""
        elapsed_s = max(self._clock() - self._began, 1e-9)
        parts = [f"{self._num_items} items", f"{self._num_items / elapsed_s:.3g}/s"]
        if self._num_failed:
            parts.append(f"{self._num_failed} failed")
        if not self._num_bytes_total:
            return ", ".join(parts)
        share = self._num_bytes / self._num_bytes_total
        if 0 < share < 1:
            minutes, seconds = divmod(round(elapsed_s * (1 - share) / share), 60)
            hours, minutes = divmod(minutes, 60)
            eta = f"{minutes}:{seconds:02d}"
            if hours:
                eta = f"{hours}:{minutes:02d}:{seconds:02d}"
            parts.append(f"eta {eta}")
        num_marks = round(min(share, 1.0) * _BAR_WIDTH)
        return f"[{('#' * num_marks).ljust(_BAR_WIDTH)}] {', '.join(parts)}"

    def _draw(self, *, is_last: bool) -> None:
        text = self.text()
        if self._is_terminal:
            text = f"\r\x1b[K{text}"  # to the start of the line, which is emptied
        if is_last or not self._is_terminal:
            text += "\n"
        self._stream.write(text)
        self._stream.flush()
