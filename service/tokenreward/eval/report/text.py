"""The outcome as text for a terminal: a row per scorer, a row per subset, and the failures.

It knows no terminal but its width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenreward.display import safe_text
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.outcome import ScorerOutcome
from tokenreward.eval.statistics import Estimate

WIDTH = 140
MAX_FAILURES = 5
"""Failures that are listed per scorer; the rest is counted."""

_NOTHING = "-"
_GAP = "  "


def text_report(dataset: Dataset, outcomes: Sequence[ScorerOutcome], *, width: int = WIDTH) -> str:
    """Everything that is printed at the end, without a final newline.

    Args:
        dataset: What the scorers were judged on.
        outcomes: One per scorer, at least one.
        width: Characters per line. A wider table goes on below, its first column repeated.
    """
    first = outcomes[0].judgement
    parts = [
        f"{dataset.num_cases} {dataset.noun} ({dataset.kind}), 95 % intervals in brackets",
        _scorer_table(outcomes, width),
    ]
    parts += _latency_note(outcomes)
    if first.groups:
        lines = [["", *(outcome.subject.label for outcome in outcomes)]]
        for name in first.groups:
            cells = [_cell(outcome.judgement.groups[name]) for outcome in outcomes]
            lines.append([name, *cells])
        parts.append(f"{first.groups_title}:\n{_aligned(lines, width)}")
    parts += [f"note: {note}" for note in first.notes]
    parts += [_failures(outcome) for outcome in outcomes if outcome.failures]
    return "\n\n".join(parts)


def _cell(estimate: Estimate | None) -> str:
    """`0.986 [0.977, 0.992]`."""
    if estimate is None:
        return _NOTHING
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _scorer_table(outcomes: Sequence[ScorerOutcome], width: int) -> str:
    titles = [title for title, _ in outcomes[0].judgement.columns.values()]
    lines = [["scorer", *titles, "ms/item", "ties", "errors"]]
    for outcome in outcomes:
        per_item = ties = _NOTHING
        if outcome.latency is not None:
            per_item = f"{1000 * outcome.latency.per_item_s:.3g}"
        if outcome.ties is not None:
            ties = str(outcome.ties)
        cells = [_cell(estimate) for _, estimate in outcome.judgement.columns.values()]
        num_failures = str(len(outcome.failures))
        lines.append([outcome.subject.label, *cells, per_item, ties, num_failures])
    return _aligned(lines, width)


def _latency_note(outcomes: Sequence[ScorerOutcome]) -> list[str]:
    """What `ms/item` is, for a reader who has only this; nothing where nothing was timed."""
    concurrencies: set[int] = set()
    for outcome in outcomes:
        if outcome.latency is not None:
            concurrencies |= set(outcome.latency.concurrencies)
    if not concurrencies:
        return []
    numbers = " or ".join(map(str, sorted(concurrencies)))
    return [f"ms/item: wall time over items scored, up to {numbers} requests in flight"]


def _failures(outcome: ScorerOutcome) -> str:
    codes = ", ".join(f"{code} {num}" for code, num in outcome.codes.items())
    num = len(outcome.failures)
    lines = [
        f"{outcome.subject.label}: {num} of {outcome.num_items} items have no answer and count "
        f"nowhere: {codes}"
    ]
    for where, code, message in outcome.failures[:MAX_FAILURES]:
        lines.append(f"  {where}: {code}: {message}")
    if num > MAX_FAILURES:
        lines.append(f"  and {num - MAX_FAILURES} more")
    return "\n".join(safe_text(line) for line in lines)


def _aligned(lines: Sequence[Sequence[str]], width: int) -> str:
    """Columns side by side, in blocks of lines no wider than `width` where two columns fit in
    it."""
    columns = [list(map(safe_text, column)) for column in zip(*lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    blocks = []
    for places in _blocks(widths, width):
        rows = []
        for number in range(len(lines)):
            cells = [columns[place][number].ljust(widths[place]) for place in places]
            rows.append(_GAP.join(cells).rstrip())
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def _blocks(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """The places of the columns of each block: the first column, and as many of the others in turn
    as fit, at least one."""
    places, num_characters = [0], widths[0]
    for place in range(1, len(widths)):
        needed = len(_GAP) + widths[place]
        if len(places) > 1 and num_characters + needed > width:
            yield places
            places, num_characters = [0], widths[0]
        places.append(place)
        num_characters += needed
    yield places
