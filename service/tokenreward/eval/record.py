"""The outcome as one JSON value, for other programs: every figure with its interval and every
failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tokenreward.eval.dataset import Dataset
from tokenreward.eval.figure import Figure
from tokenreward.eval.verdict import Judged


def record(dataset: Dataset, rows: Sequence[Judged], *, files: Sequence[str]) -> dict[str, Any]:
    """`{"kind", "files", "num_cases", "scorers": [...]}`. Absent figures are null."""
    scorers = [_scorer(row) for row in rows]
    return {
        "kind": dataset.kind,
        "files": list(files),
        "num_cases": dataset.num_cases,
        "scorers": scorers,
    }


def _scorer(row: Judged) -> dict[str, Any]:
    verdict, info = row.verdict, row.subject.info
    return {
        "label": row.subject.label,
        "scorer": info.name,
        "type": info.type,
        "model": info.model,
        "version": info.version,
        "options": dict(row.subject.options),
        "credit": dict(row.subject.credit),
        "figures": {
            column.name: {"title": column.title, **(_figure(column.figure) or {"value": None})}
            for column in verdict.columns
        },
        "groups": {name: _figure(figure) for name, figure in verdict.groups.items()},
        "matrices": {name: matrix.tolist() for name, matrix in verdict.matrices.items()},
        "counts": dict(verdict.counts),
        "notes": list(verdict.notes),
        "latency": None if row.latency is None else asdict(row.latency),
        "num_items": row.num_items,
        "error_codes": row.codes,
        "errors": [asdict(failure) for failure in row.failures],
    }


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else asdict(figure)
