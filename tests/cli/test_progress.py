"""The progress bar on a clock of its own."""

from __future__ import annotations

import io

from tokenreward.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_text_has_items_rate_and_time_left() -> None:
    clock = Clock()
    progress = Progress(io.StringIO(), 1000, clock=clock)
    clock.now = 2.0
    progress.advance(50, 250, num_failed=3)
    assert progress.text() == "[######                  ] 50 items, 25/s, 3 failed, eta 0:06"


def test_unknown_total_has_no_bar_and_no_eta() -> None:
    clock = Clock()
    progress = Progress(io.StringIO(), None, clock=clock)
    clock.now = 2.0
    progress.advance(50, 250)
    assert progress.text() == "50 items, 25/s"


def test_terminal_is_redrawn_in_place_but_not_for_every_item() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress(stream, 100, clock=clock)
    progress.advance(1, 10)
    assert stream.getvalue() == ""
    clock.now = 0.2
    progress.advance(1, 10)
    clock.now = 4000.0
    progress.advance(1, 10)
    assert stream.getvalue().count("\r\x1b[K") == 2
    assert "\n" not in stream.getvalue()
    assert "eta 2:35:33" in stream.getvalue()


def test_log_gets_a_line_now_and_then_and_no_escape_codes() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(stream, 100, clock=clock)
    for second in range(25):
        clock.now = float(second)
        progress.advance(1, 4)
    progress.finish()
    assert stream.getvalue().count("\n") == 3
    assert "\x1b" not in stream.getvalue()
    assert "25 items" in stream.getvalue().splitlines()[-1]
