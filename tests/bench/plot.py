"""A plot of a few lines as SVG, both axes logarithmic. It knows numbers and names only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.figure import Point

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 50, 50
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#e0a458", "#7a4988", "#2a9d8f", "#6c757d", "#b56576")


@dataclass(frozen=True)
class Axis:
    """Maps values to places, both ends included."""

    low: float
    high: float
    start: float
    stop: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float, *, base: float) -> Axis:
        """From one power of `base` at or below the smallest value to one at or above the
        largest."""
        low = math.floor(math.log(min(values), base) + 1e-9)
        high = max(low + 1, math.ceil(math.log(max(values), base) - 1e-9))
        return cls(base**low, base**high, start, stop)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, base: float) -> list[float]:
        count = round(math.log(self.high / self.low, base))
        return [self.low * base**step for step in range(count + 1)]


@dataclass(frozen=True)
class Words:
    title: str
    x: str
    y: str


def svg(points: Sequence[Point], words: Words) -> str:
    """The points, joined by series. A value must be more than 0."""
    x = Axis.over([point.x for point in points], LEFT, WIDTH - RIGHT, base=2)
    y = Axis.over([point.y for point in points], HEIGHT - BOTTOM, TOP, base=10)
    names = list(dict.fromkeys(point.series for point in points))
    series = [sorted((p.x, p.y) for p in points if p.series == name) for name in names]
    body = [
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(words.title)}</text>',
        *_grid(x, y),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(words.x)}</text>",
        f'<text x="{LEFT}" y="42">{escape(words.y)}</text>',
    ]
    for place, (name, dots) in enumerate(zip(names, series, strict=True)):
        body += _series(name, [(x.at(a), y.at(b)) for a, b in dots], place)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return "\n".join(
        [
            f'{head} font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _grid(x: Axis, y: Axis) -> list[str]:
    lines = []
    for value in x.ticks(2):
        at = x.at(value)
        lines.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        lines.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    for value in y.ticks(10):
        at = y.at(value)
        lines.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:,.10g}</text>'
        )
    return lines


def _series(name: str, places: list[tuple[float, float]], number: int) -> list[str]:
    """A line, its dots, and its entry in the legend."""
    colour, legend = COLOURS[number % len(COLOURS)], TOP + 12 + 20 * number
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    right = WIDTH - RIGHT + 16
    return [
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in places),
        f'<path d="M{right} {legend}h22" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{right + 28}" y="{legend + 4}">{escape(name)}</text>',
    ]
