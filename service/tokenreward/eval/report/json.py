"""The outcome as one JSON value, for other programs: every estimate with its interval, every
failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tokenreward.eval.dataset import Dataset
from tokenreward.eval.outcome import ScorerOutcome
from tokenreward.eval.statistics import Estimate


def json_report(
    dataset: Dataset, outcomes: Sequence[ScorerOutcome], *, files: Sequence[str]
) -> dict[str, Any]:
    """`{"kind", "files", "num_cases", "scorers": [...]}`. An estimate of no cases is null."""
    return {
        "kind": dataset.kind,
        "files": list(files),
        "num_cases": dataset.num_cases,
        "scorers": [_scorer(outcome) for outcome in outcomes],
    }


def _scorer(outcome: ScorerOutcome) -> dict[str, Any]:
    judgement, info = outcome.judgement, outcome.subject.info
    figures = {}
    for name, (title, estimate) in judgement.columns.items():
        figures[name] = {"title": title, **(_as_dict(estimate) or {"value": None})}
    errors = []
    for where, code, message in outcome.failures:
        errors.append({"where": where, "code": code, "message": message})
    return {
        "label": outcome.subject.label,
        "scorer": info.name,
        "type": info.type,
        "model": info.model,
        "version": info.version,
        "options": dict(outcome.subject.options),
        "credit": dict(outcome.subject.credit),
        "figures": figures,
        "groups": {name: _as_dict(estimate) for name, estimate in judgement.groups.items()},
        "matrices": {name: matrix.tolist() for name, matrix in judgement.matrices.items()},
        "counts": dict(judgement.counts),
        "notes": list(judgement.notes),
        "latency": None if outcome.latency is None else asdict(outcome.latency),
        "num_items": outcome.num_items,
        "error_codes": outcome.codes,
        "errors": errors,
    }


def _as_dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
