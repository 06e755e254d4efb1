"""One line of the bench: our figure, the rival's, their ratio, and what was asked for. It knows no models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """`ratio` is how many times better we are; it is SHORT below `target`. A `ceiling` turns that round: SHORT above.

    `unit`: of `ours` and `rival`. `note`: what the reader must know to judge it.
    """

    name: str
    ours: float
    rival: float
    ratio: float
    target: float
    unit: str
    ceiling: bool = False
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.ratio <= self.target if self.ceiling else self.ratio >= self.target

    def line(self) -> str:
        """`name  ours  rival  ratio  target  ok|SHORT`."""
        bound = f"<={self.target:g}" if self.ceiling else f">={self.target:g}"
        numbers = f"{self.ours:>10.4g} {self.rival:>10.4g} {self.unit:<8} {self.ratio:>8.3g} {bound:>8}"
        return f"{self.name:<58} {numbers}  {'ok' if self.ok else 'SHORT'}{'  ' + self.note if self.note else ''}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


HEADER = f"{'figure':<58} {'ours':>10} {'rival':>10} {'unit':<8} {'ratio':>8} {'target':>8}"
