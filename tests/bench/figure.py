"""What the bench says: a figure beside its rival's and what was asked for, a rival that was not
there, a dot of a plot.

It knows no models and no servers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

NAME_WIDTH = 66


@dataclass(frozen=True)
class Figure:
    """`ratio` is how many times better we are; it is SHORT below `target`. A `ceiling` turns that
    round: SHORT above.

    `unit`: of `ours` and `rival`. `note`: what the reader must know to judge it. A target of 0 asks
    for nothing. `judged`: False in a rehearsal, whose numbers mean nothing.
    """

    name: str
    ours: float
    rival: float
    ratio: float
    target: float
    unit: str
    ceiling: bool = False
    note: str = ""
    judged: bool = True

    @property
    def ok(self) -> bool:
        return self.ratio <= self.target if self.ceiling else self.ratio >= self.target

    def line(self) -> str:
        """`name  ours  rival  ratio  target  ok|SHORT`."""
        bound = f"<={self.target:g}" if self.ceiling else f">={self.target:g}"
        numbers = (
            f"{self.ours:>10.4g} {self.rival:>10.4g} {self.unit:<8} {self.ratio:>8.3g} {bound:>8}"
        )
        verdict = ("ok" if self.ok else "SHORT") if self.judged else "-"
        return (
            f"{self.name:<{NAME_WIDTH}} {numbers}  {verdict}{'  ' + self.note if self.note else ''}"
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class Skipped:
    """A figure that could not be taken, because something that is not ours is not there."""

    name: str
    reason: str
    ok = True

    def line(self) -> str:
        return f"{self.name:<{NAME_WIDTH}} skipped: {self.reason}"

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "skipped": self.reason}


@dataclass(frozen=True)
class Point:
    """One dot of a plot."""

    plot: str
    series: str
    x: float
    y: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Result = Figure | Skipped | Point

HEADER = (
    f"{'figure':<{NAME_WIDTH}} {'ours':>10} {'rival':>10} {'unit':<8} {'ratio':>8} {'target':>8}"
)


def exit_code(results: Iterable[Result]) -> int:
    """1 if any figure that is judged is SHORT."""
    return int(
        any(isinstance(result, Figure) and result.judged and not result.ok for result in results)
    )
