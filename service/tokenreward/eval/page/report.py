"""The sections of the page: all scorers in one table, then each scorer with its plots, worst cases
and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tokenreward.eval.answer import Answer
from tokenreward.eval.dataset import Candidate, Dataset
from tokenreward.eval.figure import Figure
from tokenreward.eval.page import plot
from tokenreward.eval.page.document import document
from tokenreward.eval.page.markup import safe
from tokenreward.eval.page.passage import largest, passage
from tokenreward.eval.rm_bench import STYLES
from tokenreward.eval.verdict import Example, Judged

NUM_FAILURES_SHOWN = 100
_NOTHING = "-"


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A scorer's row, and for the candidates of its examples the answer with units, by index."""

    judged: Judged
    answers: Mapping[int, Answer]


def examples_of(judged: Judged, dataset: Dataset) -> dict[int, Candidate]:
    """The candidates that the page shows token by token, by index, asked for with units."""
    indices = {
        shown.candidate
        for examples in judged.verdict.examples.values()
        for example in examples
        for shown in example.shown
    }
    return {
        index: replace(dataset.candidates[index], needs_units=True) for index in sorted(indices)
    }


def page(dataset: Dataset, rows: Sequence[Answered], *, title: str) -> str:
    """The whole HTML document."""
    judged = [row.judged for row in rows]
    parts = [
        f"<p>{dataset.num_cases} {safe(dataset.noun)}, kind {safe(dataset.kind)}. Brackets and "
        "whiskers are 95 % "
        "intervals.</p>",
        _overview(judged),
        *(f'<p class="note">{safe(note)}</p>' for note in judged[0].verdict.notes),
        _latency(judged),
        *(_scorer(dataset, row) for row in rows),
    ]
    return document(title, "\n".join(parts))


def _overview(rows: Sequence[Judged]) -> str:
    titles = [column.title for column in rows[0].verdict.columns]
    lines = [
        [
            safe(row.subject.label),
            *(_cell(column.figure) for column in row.verdict.columns),
            _ties(row),
            f"{len(row.failures)}",
        ]
        for row in rows
    ]
    table = _table(["scorer", *titles, "ties", "errors"], lines)
    heads = [(row.subject.label, row.verdict.columns[0].figure) for row in rows]
    return f"{table}<h3>{safe(titles[0])}</h3>{_tracks(heads)}"


def _latency(rows: Sequence[Judged]) -> str:
    known = [(row.subject.label, row.latency) for row in rows if row.latency is not None]
    if not known:
        return ""
    most = max(latency.per_item_s for _, latency in known) or 1.0
    lines = [
        [
            safe(label),
            plot.bar(latency.per_item_s / most, f"{1000 * latency.per_item_s:.3g} ms"),
            f"{1000 * latency.per_item_s:.3g}",
            f"{latency.request_median_s:.3g}",
            f"{latency.request_p95_s:.3g}",
            safe(", ".join(map(str, latency.concurrencies))),
        ]
        for label, latency in known
    ]
    head = [
        "scorer",
        "",
        "ms per item",
        "request median, s",
        "request p95, s",
        "requests in flight",
    ]
    note = (
        "Per item: wall time of scoring over the items scored. Request: from its sending to its "
        "whole reply, up to 64 "
        "items, waiting for the other requests in flight and retries included."
    )
    return f'<h2>Latency</h2>{_table(head, lines)}<p class="note">{note}</p>'


def _scorer(dataset: Dataset, row: Answered) -> str:
    judged, verdict = row.judged, row.judged.verdict
    info = judged.subject.info
    asked = {"options": dict(judged.subject.options), "credit": dict(judged.subject.credit)}
    said = ", ".join(f"{name} {json.dumps(value)}" for name, value in asked.items() if value)
    counts = ", ".join(f"{name} {count}" for name, count in verdict.counts.items())
    parts = [
        f"<h2>{safe(judged.subject.label)}</h2>",
        f"<p>Scorer {safe(info.name)} ({safe(info.type)}), model {safe(info.model)}, version "
        f"{safe(info.version)}"
        f"{safe(', ' + said if said else '')}. {safe(counts)}.</p>",
        f'<div class="plots">{_plots(judged)}</div>',
    ]
    if verdict.groups:
        parts.append(
            f"<h3>{safe(verdict.groups_title)}</h3>{_tracks(list(verdict.groups.items()))}"
        )
    parts += [
        _examples(title, examples, dataset, row.answers)
        for title, examples in verdict.examples.items()
    ]
    return "\n".join([*parts, _failures(judged)])


def _plots(judged: Judged) -> str:
    verdict = judged.verdict
    drawn = []
    if any(len(values) for values in verdict.classes.values()):
        drawn.append(
            (
                plot.histogram(verdict.classes),
                f"{' and '.join(verdict.classes)}: share of cases by score",
            )
        )
    for name, matrix in verdict.matrices.items():
        title = f"{name}: share of prompts whose chosen response wins"
        drawn.append((plot.heat_map(matrix, STYLES, title), title))
    if verdict.curve is not None:
        drawn.append((plot.roc(verdict.curve, verdict.curve_title), f"ROC: {verdict.curve_title}"))
    return "".join(
        f"<figure>{svg}<figcaption>{safe(caption)}</figcaption></figure>" for svg, caption in drawn
    )


def _examples(
    title: str, examples: Sequence[Example], dataset: Dataset, answers: Mapping[int, Answer]
) -> str:
    if not examples:
        return ""
    shown = "".join(_example(example, dataset, answers) for example in examples)
    return f"<h3>{safe(title)}: the {len(examples)} worst</h3>{shown}"


def _example(example: Example, dataset: Dataset, answers: Mapping[int, Answer]) -> str:
    units = [
        found.units
        for shown in example.shown
        if (found := answers.get(shown.candidate)) and found.units
    ]
    limit = largest(units)
    first = dataset.candidates[example.shown[0].candidate]
    parts = [
        f'<p><small>prompt</small></p><div class="text" dir="auto">{safe(_prompt(first))}</div>'
    ]
    for shown in example.shown:
        response, answer = (
            dataset.candidates[shown.candidate].item["response"],
            answers.get(shown.candidate),
        )
        if answer is not None and answer.units is not None:
            body = passage(response, answer.units, limit=limit, flagged=shown.flagged)
        else:
            why = "not asked" if answer is None or answer.error is None else answer.error.message
            body = f"{safe(response)}\n<small>no rewards: {safe(why)}</small>"
        parts.append(
            f'<p><small>{safe(shown.label)}</small></p><div class="text" dir="auto">{body}</div>'
        )
    scale = f"<p><small>full colour at {limit:.3g}: red below zero, green above</small></p>"
    return (
        f"<details><summary>{safe(example.where)}: "
        f"{safe(example.said)}</summary>{''.join(parts)}{scale}</details>"
    )


def _prompt(candidate: Candidate) -> str:
    prompt = candidate.item["prompt"]
    if isinstance(prompt, str):
        return prompt
    turns = ((str(message.get("role")), message.get("content")) for message in prompt)
    return "\n".join(
        f"[{role}] {said if isinstance(said, str) else json.dumps(said)}" for role, said in turns
    )


def _failures(judged: Judged) -> str:
    if not judged.failures:
        return ""
    listed = judged.failures[:NUM_FAILURES_SHOWN]
    lines = [[safe(each.where), safe(each.code), safe(each.message)] for each in listed]
    more = len(judged.failures) - len(listed)
    note = f'<p class="note">and {more} more</p>' if more else ""
    codes = ", ".join(f"{code} {num}" for code, num in judged.codes.items())
    head = (
        f"<h3>{len(judged.failures)} of {judged.num_items} items have no answer and count "
        "nowhere</h3>"
    )
    return f"{head}<p>{safe(codes)}</p>{_table(['item', 'code', 'message'], lines)}{note}"


def _tracks(figures: Sequence[tuple[str, Figure | None]]) -> str:
    lines = [
        [safe(name), _NOTHING if figure is None else plot.track(figure), _cell(figure)]
        for name, figure in figures
    ]
    return _table([], lines)


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return _NOTHING
    return f"{figure.value:.3f} <small>[{figure.low:.3f}, {figure.high:.3f}]</small>"


def _ties(row: Judged) -> str:
    return _NOTHING if row.ties is None else str(row.ties)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """`head` is text, the cells of `lines` are markup."""
    top = (
        f"<thead><tr>{''.join(f'<th>{safe(name)}</th>' for name in head)}</tr></thead>"
        if head
        else ""
    )
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'
