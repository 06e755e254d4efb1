"""The outcome as text: a row per scorer, a row per subset, what failed. It knows no terminal but
its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenreward.eval.dataset import Dataset
from tokenreward.eval.figure import Figure
from tokenreward.eval.verdict import Judged
from tokenreward.eval.visible import visible

WIDTH = 140
NUM_FAILURES_SHOWN = 5
_NOTHING = "-"
_GAP = "  "


def tables(dataset: Dataset, rows: Sequence[Judged], *, width: int = WIDTH) -> str:
    """Everything that is printed at the end, without a final newline. A table wider than `width`
    characters goes on below, its first column repeated."""
    first = rows[0].verdict
    parts = [
        f"{dataset.num_cases} {dataset.noun} ({dataset.kind}), 95 % intervals in brackets",
        _scorers(rows, width),
    ]
    parts += _latency(rows)
    if first.groups:
        parts.append(f"{first.groups_title}:\n{_groups(rows, width)}")
    parts += [f"note: {note}" for note in first.notes]
    parts += [_failures(row) for row in rows if row.failures]
    return "\n\n".join(parts)


def shown(figure: Figure | None) -> str:
    """`0.986 [0.977, 0.992]`."""
    return (
        _NOTHING if figure is None else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    )


def _scorers(rows: Sequence[Judged], width: int) -> str:
    titles = [column.title for column in rows[0].verdict.columns]
    lines = [["scorer", *titles, "ms/item", "ties", "errors"]]
    for row in rows:
        per_item = _NOTHING if row.latency is None else f"{1000 * row.latency.per_item_s:.3g}"
        ties = _NOTHING if row.ties is None else str(row.ties)
        figures = [shown(column.figure) for column in row.verdict.columns]
        lines.append([row.subject.label, *figures, per_item, ties, str(len(row.failures))])
    return _aligned(lines, width)


def _latency(rows: Sequence[Judged]) -> list[str]:
    """What `ms/item` is, for a reader who has only this."""
    used = sorted(
        {each for row in rows if row.latency is not None for each in row.latency.concurrencies}
    )
    if not used:
        return []
    return [
        f"ms/item: wall time over items scored, up to {' or '.join(map(str, used))} requests in "
        "flight"
    ]


def _groups(rows: Sequence[Judged], width: int) -> str:
    lines = [["", *(row.subject.label for row in rows)]]
    lines += [
        [name, *(shown(row.verdict.groups[name]) for row in rows)]
        for name in rows[0].verdict.groups
    ]
    return _aligned(lines, width)


def _failures(row: Judged) -> str:
    listed = [
        f"  {each.where}: {each.code}: {each.message}" for each in row.failures[:NUM_FAILURES_SHOWN]
    ]
    more = len(row.failures) - NUM_FAILURES_SHOWN
    if more > 0:
        listed.append(f"  and {more} more")
    codes = ", ".join(f"{code} {num}" for code, num in row.codes.items())
    counted = f"{len(row.failures)} of {row.num_items} items have no answer and count nowhere"
    head = f"{row.subject.label}: {counted}: {codes}"
    return "\n".join(visible(line) for line in [head, *listed])


def _aligned(lines: Sequence[Sequence[str]], width: int) -> str:
    """Columns side by side, in blocks of lines no wider than `width` where two columns fit in
    it."""
    cells = [[visible(cell) for cell in line] for line in lines]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    blocks = [
        "\n".join(
            _GAP.join(line[place].ljust(widths[place]) for place in places).rstrip()
            for line in cells
        )
        for places in _blocks(widths, width)
    ]
    return "\n\n".join(blocks)


def _blocks(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Places of the columns of each block: the first column, and as many of the others in turn as
    fit, at least one."""
    places, used = [0], widths[0]
    for place in range(1, len(widths)):
        needed = len(_GAP) + widths[place]
        if len(places) > 1 and used + needed > width:
            yield places
            places, used = [0], widths[0]
        places.append(place)
        used += needed
    yield places
