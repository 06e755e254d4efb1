"""Drawings as inline SVG: intervals, histograms, heat maps, ROC curves, bars. Colours are the
page's own variables.

Numbers in, markup out; it knows no scorers. Every drawing is 360 wide or less, so that letters are
readable on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tokenreward.eval.auc import Curve
from tokenreward.eval.figure import Figure, Floats
from tokenreward.eval.page.markup import safe

NUM_BINS = 30
_WIDTH = 360
_MOST_POINTS = 200
_TRACK = 160


def track(figure: Figure, *, low: float = 0.0, high: float = 1.0) -> str:
    """A value and its interval on a line from `low` to `high`, half of it marked."""

    def place(value: float) -> float:
        return 4 + (_TRACK - 8) * (min(max(value, low), high) - low) / (high - low)

    name = f"{figure.value:.3f}, interval {figure.low:.3f} to {figure.high:.3f}"
    return (
        f'<svg class="track" viewBox="0 0 {_TRACK} 16" role="img" aria-label="{name}"><title>{name}</title>'
        f'<path class="axis" d="M4 8H{_TRACK - 4}M{_TRACK // 2} 4V12"/>'
        f'<path class="whisker" d="M{place(figure.low):.1f} 8H{place(figure.high):.1f}"/>'
        f'<circle class="first" cx="{place(figure.value):.1f}" cy="8" r="4"/></svg>'
    )


def bar(share: float, name: str) -> str:
    """A bar that takes `share` of the line."""
    width = max(1.0, _TRACK * share)
    return (
        f'<svg class="track" viewBox="0 0 {_TRACK} 16" role="img" aria-label="{safe(name)}">'
        f'<rect class="first" x="0" y="3" width="{width:.1f}" height="10" rx="2"/></svg>'
    )


def histogram(classes: Mapping[str, Floats]) -> str:
    """Two distributions over one another, each as shares of its own cases."""
    known = {name: values for name, values in classes.items() if len(values)}
    if not known:
        return ""
    every = np.concatenate(list(known.values()))
    low, high = float(every.min()), float(every.max())
    if low == high:
        margin = max(0.5, abs(low) / 2)
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, NUM_BINS + 1)
    shares = {
        name: np.histogram(values, bins=edges)[0] / len(values) for name, values in known.items()
    }
    top = max(float(each.max()) for each in shares.values())
    styles = dict(zip(classes, ("first", "second"), strict=False))
    body = "".join(_steps(each / top, styles[name]) for name, each in shares.items())
    marks = ((30, low, "start"), (195, (low + high) / 2, "middle"), (360, high, "end"))
    words = "".join(_word(x, 178, f"{value:.3g}", anchor) for x, value, anchor in marks)
    legend = "".join(
        f'<rect class="{styles[name]}" x="{30 + 165 * index}" y="2" width="12" height="12" opacity="0.6"/>'
        + _word(46 + 165 * index, 12, f"{name} (mean {values.mean():.3g})")
        for index, (name, values) in enumerate(known.items())
    )
    peak = _word(0, 28, f"{100 * top:.0f}%")
    return _drawing(
        184,
        f"distribution of {' and '.join(known)}",
        f'{legend}{peak}<path class="axis" d="M30 160H360"/>{body}{words}',
    )


def heat_map(matrix: Floats, styles: Sequence[str], name: str) -> str:
    """Shares [n, n] in [0, 1] as cells, chosen down and rejected across; the further from a half,
    the stronger."""
    left, top, width, height = 76, 40, 92, 44
    body = []
    for j, style in enumerate(styles):
        middle = left + width * (j + 0.5)
        body += [
            _word(middle, top - 22, "rejected", "middle"),
            _word(middle, top - 8, style, "middle"),
        ]
    for i, row in enumerate(matrix.tolist()):
        y = top + height * i
        body += [
            _word(left - 8, y + 18, "chosen", "end"),
            _word(left - 8, y + 32, styles[i], "end"),
        ]
        for j, value in enumerate(row):
            x, opacity = left + width * j, 0.05 + 0.9 * abs(value - 0.5)
            size = f'width="{width - 2}" height="{height - 2}" opacity="{opacity:.2f}"'
            body.append(
                f'<rect class="{"first" if value >= 0.5 else "second"}" x="{x}" y="{y}" {size}/>'
            )
            body.append(_word(x + width / 2, y + 26, f"{value:.3f}", "middle"))
    return _drawing(top + height * len(styles) + 4, name, "".join(body))


def roc(curve: Curve, name: str) -> str:
    """The curve, and chance."""
    keep = np.unique(np.linspace(0, len(curve.false_rates) - 1, _MOST_POINTS).astype(int))
    x, y = 30 + 220 * curve.false_rates[keep], 240 - 220 * curve.true_rates[keep]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    words = _word(30, 256, "0") + _word(250, 256, "1", "end") + _word(26, 30, "1", "end")
    words += _word(140, 256, "false positive rate", "middle") + _word(36, 14, "true positive rate")
    frame = '<path class="axis" d="M30 20V240H250M30 240L250 20"/>'
    return _drawing(
        262, name, f'{frame}<polyline class="curve" fill="none" points="{points}"/>{words}'
    )


def _steps(heights: Floats, style: str) -> str:
    width = 330 / len(heights)
    line = "".join(
        f"V{160 - 130 * height:.1f}H{30 + width * (place + 1):.1f}"
        for place, height in enumerate(heights.tolist())
    )
    return f'<path class="{style}" opacity="0.6" d="M30 160{line}V160Z"/>'


def _word(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{safe(text)}</text>'


def _drawing(height: float, name: str, body: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{safe(name)}">'
        f"<title>{safe(name)}</title>{body}</svg>"
    )
