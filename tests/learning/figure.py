"""The evaluations of one reward's runs as a table and as a plot in SVG. It knows numbers and names
only."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

FIGURES = {
    "faithful": "responses with every fact right",
    "facts_right": "facts right, of those stated",
    "malformed": "malformed responses",
    "tokens": "tokens per response",
    "reward": "reward per response",
}
COLOURS = {"scalar": "#c8553d", "dense": "#0b6e4f"}
WIDTH, HEIGHT, MARGIN = 300, 200, 46

Runs = Sequence[dict[str, Any]]


def series(runs: Runs, arm: str, name: str) -> tuple[list[int], list[list[float]]]:
    """The steps of the evaluations, and one list of values per seed."""
    chosen = [run["evaluation"] for run in runs if run["arm"] == arm]
    return [row["step"] for row in chosen[0]], [[row[name] for row in rows] for rows in chosen]


def arms(runs: Runs) -> list[str]:
    return list(dict.fromkeys(run["arm"] for run in runs))


def table(runs: Runs) -> str:
    """The first evaluation and each arm's last one as a Markdown table: the mean over seeds, and
    the lowest and the highest."""
    first = runs[0]["evaluation"][0]  # of the policy that all begin with
    last = {arm: series(runs, arm, "reward")[0][-1] for arm in arms(runs)}
    lines = [
        "| | start | " + " | ".join(f"`{arm}`, step {step}" for arm, step in last.items()) + " |",
        "|---" * (2 + len(last)) + "|",
    ]
    for name, words in FIGURES.items():
        cells = [words, f"{first[name]:.2f}"]
        for arm in last:
            values = [row[-1] for row in series(runs, arm, name)[1]]
            cells.append(f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(runs: Runs) -> str:
    """Truth, reward and length over steps: each seed as a thin line, the mean as a thick one."""
    panels = ("faithful", "facts_right", "reward", "tokens")
    body = []
    for place, name in enumerate(panels):
        left = MARGIN + place % 2 * (WIDTH + MARGIN)
        top = MARGIN + place // 2 * (HEIGHT + MARGIN)
        body += panel(runs, name, left, top)
    for place, arm in enumerate(arms(runs)):
        x = MARGIN + place * 120
        body.append(f'<text x="{x}" y="18" fill="{COLOURS[arm]}" font-weight="bold">{arm}</text>')
    width, height = 2 * (WIDTH + MARGIN) + 20, 2 * (HEIGHT + MARGIN) + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def panel(runs: Runs, name: str, left: int, top: int) -> list[str]:
    """One figure over the steps, its axes from the lowest to the highest value."""
    lines = {arm: series(runs, arm, name) for arm in arms(runs)}
    values = [v for _, seeds in lines.values() for row in seeds for v in row]
    low, high = min(values), max(values)
    last = max(steps[-1] for steps, _ in lines.values())
    bottom = top + HEIGHT - 20

    def at(step: int, value: float) -> str:
        x = left + step / last * (WIDTH - 20)
        y = bottom - (value - low) / ((high - low) or 1.0) * (HEIGHT - 40)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<text x="{left}" y="{top}" font-weight="bold">{FIGURES[name]}</text>',
        f'<path d="M{left},{top + 20}V{bottom}H{left + WIDTH - 20}" stroke="#999" fill="none"/>',
        f'<text x="{left - 4}" y="{top + 24}" text-anchor="end">{high:.2f}</text>',
        f'<text x="{left - 4}" y="{bottom}" text-anchor="end">{low:.2f}</text>',
        f'<text x="{left + WIDTH - 20}" y="{bottom + 14}" text-anchor="end">step {last}</text>',
    ]
    for arm, (steps, seeds) in lines.items():
        means = [mean(column) for column in zip(*seeds, strict=True)]
        for row, width, opacity in [*((row, 1, 0.4) for row in seeds), (means, 3, 1)]:
            points = " ".join(at(step, value) for step, value in zip(steps, row, strict=True))
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{COLOURS[arm]}" '
                f'stroke-width="{width}" stroke-opacity="{opacity}"/>'
            )
    return parts
