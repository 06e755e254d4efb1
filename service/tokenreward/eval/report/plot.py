"""Drawings as inline SVG: intervals, bars, histograms, heat maps, ROC curves.

Numbers in, markup out; it knows no scorers. Colours are the page's own variables. Every drawing is
at most 360 wide, so that its letters are readable on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tokenreward.display import safe_html
from tokenreward.eval.statistics import Estimate, Floats

NUM_BINS = 30
_WIDTH = 360
_TRACK_WIDTH = 160
_MAX_POINTS = 200  # of a ROC curve; more cannot be seen
_STYLES = ("first", "second")


def track(estimate: Estimate, *, low: float = 0.0, high: float = 1.0) -> str:
    """A value and its interval on a line from `low` to `high`, whose middle is marked."""

    def x(value: float) -> str:
        place = (min(max(value, low), high) - low) / (high - low)
        return f"{4 + (_TRACK_WIDTH - 8) * place:.1f}"

    name = f"{estimate.value:.3f}, interval {estimate.low:.3f} to {estimate.high:.3f}"
    axis = f"M4 8H{_TRACK_WIDTH - 4}M{_TRACK_WIDTH // 2} 4V12"
    return (
        f"{_track_start(name)}<title>{name}</title>"
        f'<path class="axis" d="{axis}"/>'
        f'<path class="whisker" d="M{x(estimate.low)} 8H{x(estimate.high)}"/>'
        f'<circle class="first" cx="{x(estimate.value)}" cy="8" r="4"/></svg>'
    )


def bar(share: float, name: str) -> str:
    """A bar that takes `share` (0 to 1) of the line; `name` is for people who cannot see it."""
    width = max(1.0, _TRACK_WIDTH * share)
    return (
        f"{_track_start(name)}"
        f'<rect class="first" x="0" y="3" width="{width:.1f}" height="10" rx="2"/></svg>'
    )


def histogram(classes: Mapping[str, Floats]) -> str:
    """Up to two distributions over one another, each as shares of its own cases.

    Args:
        classes: Values [n] by the name of their class. A class without values is left out; without
            any values nothing is drawn.
    """
    styles = dict(zip(classes, _STYLES, strict=False))
    present = {name: values for name, values in classes.items() if len(values)}
    if not present:
        return ""
    every = np.concatenate(list(present.values()))
    low, high = float(every.min()), float(every.max())
    if low == high:
        margin = max(0.5, abs(low) / 2)
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, NUM_BINS + 1)
    shares, legend = {}, []
    for index, (name, values) in enumerate(present.items()):
        shares[name] = np.histogram(values, bins=edges)[0] / len(values)
        x = 30 + 165 * index
        legend.append(
            f'<rect class="{styles[name]}" x="{x}" y="2" width="12" height="12" opacity="0.6"/>'
        )
        legend.append(_word(x + 16, 12, f"{name} (mean {values.mean():.3g})"))
    top = max(float(each.max()) for each in shares.values())
    parts = [*legend, _word(0, 28, f"{100 * top:.0f}%"), '<path class="axis" d="M30 160H360"/>']
    parts += [_steps(each / top, styles[name]) for name, each in shares.items()]
    for x, value, anchor in (
        (30, low, "start"),
        (195, (low + high) / 2, "middle"),
        (360, high, "end"),
    ):
        parts.append(_word(x, 178, f"{value:.3g}", anchor))
    return _drawing(184, f"distribution of {' and '.join(present)}", "".join(parts))


def heat_map(matrix: Floats, styles: Sequence[str], name: str) -> str:
    """Shares [n, n] in [0, 1] as cells, chosen down and rejected across.

    A cell is the stronger, the further its share is from a half.
    """
    left, top, width, height = 76, 40, 92, 44
    size = f'width="{width - 2}" height="{height - 2}"'
    parts = []
    for j, style in enumerate(styles):
        middle = left + width * (j + 0.5)
        parts.append(_word(middle, top - 22, "rejected", "middle"))
        parts.append(_word(middle, top - 8, style, "middle"))
    for i, row in enumerate(matrix.tolist()):
        y = top + height * i
        parts.append(_word(left - 8, y + 18, "chosen", "end"))
        parts.append(_word(left - 8, y + 32, styles[i], "end"))
        for j, value in enumerate(row):
            x, opacity = left + width * j, 0.05 + 0.9 * abs(value - 0.5)
            colour = "first" if value >= 0.5 else "second"
            parts.append(f'<rect class="{colour}" x="{x}" y="{y}" {size} opacity="{opacity:.2f}"/>')
            parts.append(_word(x + width / 2, y + 26, f"{value:.3f}", "middle"))
    return _drawing(top + height * len(styles) + 4, name, "".join(parts))


def roc(curve: Floats, name: str) -> str:
    """The curve [2, k], as `roc_curve` makes it, and the diagonal of chance."""
    places = np.unique(np.linspace(0, curve.shape[1] - 1, _MAX_POINTS).astype(int))
    false_rates, true_rates = curve[:, places]
    x, y = 30 + 220 * false_rates, 240 - 220 * true_rates
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    parts = [
        '<path class="axis" d="M30 20V240H250M30 240L250 20"/>',
        f'<polyline class="curve" fill="none" points="{points}"/>',
        _word(30, 256, "0"),
        _word(250, 256, "1", "end"),
        _word(26, 30, "1", "end"),
        _word(140, 256, "false positive rate", "middle"),
        _word(36, 14, "true positive rate"),
    ]
    return _drawing(262, name, "".join(parts))


def _track_start(name: str) -> str:
    """The opening tag of a drawing as wide as a table's cell."""
    box = f"0 0 {_TRACK_WIDTH} 16"
    return f'<svg class="track" viewBox="{box}" role="img" aria-label="{safe_html(name)}">'


def _steps(heights: Floats, style: str) -> str:
    """The outline of a histogram whose heights [bins] are in [0, 1]."""
    width = 330 / len(heights)
    path = "M30 160"
    for place, height in enumerate(heights.tolist()):
        path += f"V{160 - 130 * height:.1f}H{30 + width * (place + 1):.1f}"
    return f'<path class="{style}" opacity="0.6" d="{path}V160Z"/>'


def _word(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{safe_html(text)}</text>'


def _drawing(height: float, name: str, body: str) -> str:
    box, label = f"0 0 {_WIDTH} {height:.0f}", safe_html(name)
    return (
        f'<svg class="plot" viewBox="{box}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{body}</svg>"
    )
