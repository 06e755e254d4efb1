"""The outcome as text: a row per scorer, a row per subset, what failed. It knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tokenreward.eval.dataset import Dataset
from tokenreward.eval.figure import Figure
from tokenreward.eval.verdict import Judged
from tokenreward.eval.visible import visible

NUM_FAILURES_SHOWN = 5
_NOTHING = "-"


def tables(dataset: Dataset, rows: Sequence[Judged]) -> str:
    """Everything that is printed at the end, without a final newline."""
    first = rows[0].verdict
    parts = [f"{dataset.num_cases} {dataset.noun} ({dataset.kind}), 95 % intervals in brackets", _scorers(rows)]
    if first.groups:
        parts.append(_groups(rows))
    parts += [f"note: {note}" for note in first.notes]
    parts += [_failures(row) for row in rows if row.failures]
    return "\n\n".join(parts)


def shown(figure: Figure | None) -> str:
    """`0.986 [0.977, 0.992]`."""
    return _NOTHING if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _scorers(rows: Sequence[Judged]) -> str:
    titles = [column.title for column in rows[0].verdict.columns]
    lines = [["scorer", *titles, "ms/item", "ties", "errors"]]
    for row in rows:
        per_item = _NOTHING if row.latency is None else f"{1000 * row.latency.per_item_s:.3g}"
        ties = _NOTHING if row.ties is None else str(row.ties)
        figures = [shown(column.figure) for column in row.verdict.columns]
        lines.append([row.subject.label, *figures, per_item, ties, str(len(row.failures))])
    return _aligned(lines)


def _groups(rows: Sequence[Judged]) -> str:
    lines = [["", *(row.subject.label for row in rows)]]
    lines += [[name, *(shown(row.verdict.groups[name]) for row in rows)] for name in rows[0].verdict.groups]
    return _aligned(lines)


def _failures(row: Judged) -> str:
    listed = [f"  {each.where}: {each.code}: {each.message}" for each in row.failures[:NUM_FAILURES_SHOWN]]
    more = len(row.failures) - NUM_FAILURES_SHOWN
    if more > 0:
        listed.append(f"  and {more} more")
    head = f"{row.subject.label}: {len(row.failures)} of {row.num_items} items have no answer and count nowhere:"
    return "\n".join(visible(line) for line in [head, *listed])


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    cells = [[visible(cell) for cell in line] for line in lines]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)
