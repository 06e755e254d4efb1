"""The sections of the HTML page: all scorers in one table, then each with plots, examples, errors.

It draws nothing itself and asks for nothing: `plot` and `response` draw, and the outcomes hold the
answers that the page shows token by token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenreward.display import full_strength, safe_html
from tokenreward.eval.answer import CandidateAnswer
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.dataset import Dataset
from tokenreward.eval.kinds.rm_bench import STYLES
from tokenreward.eval.outcome import Example, Judgement, ScorerOutcome
from tokenreward.eval.report import plot
from tokenreward.eval.report.response import response_html
from tokenreward.eval.report.style import document
from tokenreward.eval.statistics import Estimate

MAX_FAILURES = 100
"""Failures that are listed per scorer; the rest is counted."""

_NOTHING = "-"


def html_report(dataset: Dataset, outcomes: Sequence[ScorerOutcome], *, title: str) -> str:
    """The whole HTML document.

    Args:
        dataset: What the scorers were judged on.
        outcomes: One per scorer, at least one, with the answers for their examples.
        title: Of the document, as text.
    """
    head = (
        f"<p>{dataset.num_cases} {safe_html(dataset.noun)}, kind {safe_html(dataset.kind)}. "
        "Brackets and whiskers are 95 % intervals.</p>"
    )
    parts = [head, _overview(outcomes)]
    parts += [f'<p class="note">{safe_html(n)}</p>' for n in outcomes[0].judgement.notes]
    parts.append(_latency(outcomes))
    parts += [_scorer(dataset, outcome) for outcome in outcomes]
    return document(title, "\n".join(parts))


def _overview(outcomes: Sequence[ScorerOutcome]) -> str:
    titles = [title for title, _ in outcomes[0].judgement.columns.values()]
    lines, headlines = [], []
    for outcome in outcomes:
        estimates = [estimate for _, estimate in outcome.judgement.columns.values()]
        cells = [_cell(estimate) for estimate in estimates]
        ties = _NOTHING if outcome.ties is None else str(outcome.ties)
        lines.append([safe_html(outcome.subject.label), *cells, ties, str(len(outcome.failures))])
        headlines.append((outcome.subject.label, estimates[0]))
    table = _table(["scorer", *titles, "ties", "errors"], lines)
    return f"{table}<h3>{safe_html(titles[0])}</h3>{_tracks(headlines)}"


def _latency(outcomes: Sequence[ScorerOutcome]) -> str:
    latencies = [(o.subject.label, o.latency) for o in outcomes if o.latency is not None]
    if not latencies:
        return ""
    longest = max(latency.per_item_s for _, latency in latencies) or 1.0
    lines = []
    for label, latency in latencies:
        ms_per_item = f"{1000 * latency.per_item_s:.3g}"
        lines.append(
            [
                safe_html(label),
                plot.bar(latency.per_item_s / longest, f"{ms_per_item} ms"),
                ms_per_item,
                f"{latency.request_median_s:.3g}",
                f"{latency.request_p95_s:.3g}",
                safe_html(", ".join(map(str, latency.concurrencies))),
            ]
        )
    head = ["scorer", "", "ms per item"]
    head += ["request median, s", "request p95, s", "requests in flight"]
    note = (
        "Per item: wall time of scoring over the items scored. Request: from its sending to its "
        "whole reply, up to 64 items, waiting for the other requests in flight and retries "
        "included."
    )
    return f'<h2>Latency</h2>{_table(head, lines)}<p class="note">{note}</p>'


def _scorer(dataset: Dataset, outcome: ScorerOutcome) -> str:
    """The section of one scorer."""
    subject, judgement = outcome.subject, outcome.judgement
    info = subject.info
    facts = f"Scorer {info.name} ({info.type}), model {info.model}, version {info.version}"
    for name, value in (("options", subject.options), ("credit", subject.credit)):
        if value:
            facts += f", {name} {json.dumps(dict(value))}"
    counts = ", ".join(f"{name} {count}" for name, count in judgement.counts.items())
    parts = [
        f"<h2>{safe_html(subject.label)}</h2>",
        f"<p>{safe_html(facts)}. {safe_html(counts)}.</p>",
        f'<div class="plots">{_plots(judgement)}</div>',
    ]
    if judgement.groups:
        title = safe_html(judgement.groups_title)
        parts.append(f"<h3>{title}</h3>{_tracks(judgement.groups.items())}")
    for title, examples in judgement.examples.items():
        details = "".join(_example(example, dataset, outcome) for example in examples)
        heading = f"<h3>{safe_html(title)}: the {len(examples)} worst</h3>"
        parts.append(heading + details if examples else "")
    parts.append(_failures(outcome))
    return "\n".join(parts)


def _plots(judgement: Judgement) -> str:
    drawings = []
    if any(len(values) for values in judgement.classes.values()):
        caption = f"{' and '.join(judgement.classes)}: share of cases by score"
        drawings.append((plot.histogram(judgement.classes), caption))
    for name, matrix in judgement.matrices.items():
        caption = f"{name}: share of prompts whose chosen response wins"
        drawings.append((plot.heat_map(matrix, STYLES, caption), caption))
    if judgement.curve is not None:
        svg = plot.roc(judgement.curve, judgement.curve_title)
        drawings.append((svg, f"ROC: {judgement.curve_title}"))
    figures = []
    for svg, caption in drawings:
        figures.append(f"<figure>{svg}<figcaption>{safe_html(caption)}</figcaption></figure>")
    return "".join(figures)


def _example(example: Example, dataset: Dataset, outcome: ScorerOutcome) -> str:
    """One example, folded: its prompt, and its responses on the colours of their rewards."""
    rewards: list[float] = []
    for index in example.responses.values():
        answer = outcome.example_answers.get(index)
        if answer is not None and answer.rewards is not None:
            rewards += answer.rewards.tolist()
    strongest = full_strength(rewards)
    first = dataset.candidates[next(iter(example.responses.values()))]
    parts = [_text("prompt", safe_html(_prompt(first)))]
    for label, index in example.responses.items():
        answer = outcome.example_answers.get(index)
        parts.append(_text(label, _body(dataset.candidates[index], answer, strongest)))
    summary = f"{safe_html(example.where)}: {safe_html(example.fault)}"
    scale = f"<p><small>full colour at {strongest:.3g}: red below zero, green above</small></p>"
    return f"<details><summary>{summary}</summary>{''.join(parts)}{scale}</details>"


def _text(label: str, body: str) -> str:
    """A text of an example under its label; `body` is markup."""
    heading = f"<p><small>{safe_html(label)}</small></p>"
    return f'{heading}<div class="text" dir="auto">{body}</div>'


def _body(candidate: Candidate, answer: CandidateAnswer | None, strongest: float) -> str:
    """Markup of a response: on its colours, or plain with the reason why it has none."""
    text = candidate.item["response"]
    if answer is not None and answer.rewards is not None:
        return response_html(text, answer, strongest=strongest, flagged=candidate.character_flags)
    reason = "not asked"
    if answer is not None and answer.error is not None:
        reason = answer.fault
    return f"{safe_html(text)}\n<small>no rewards: {safe_html(reason)}</small>"


def _prompt(candidate: Candidate) -> str:
    prompt = candidate.item["prompt"]
    if isinstance(prompt, str):
        return prompt
    lines = []
    for message in prompt:
        content = message.get("content")
        if not isinstance(content, str):
            content = json.dumps(content)
        lines.append(f"[{message.get('role')}] {content}")
    return "\n".join(lines)


def _failures(outcome: ScorerOutcome) -> str:
    if not outcome.failures:
        return ""
    num = len(outcome.failures)
    heading = f"{num} of {outcome.num_items} items have no answer and count nowhere"
    codes = ", ".join(f"{code} {count}" for code, count in outcome.codes.items())
    lines = [list(map(safe_html, failure)) for failure in outcome.failures[:MAX_FAILURES]]
    table = _table(["item", "code", "message"], lines)
    note = ""
    if num > MAX_FAILURES:
        note = f'<p class="note">and {num - MAX_FAILURES} more</p>'
    return f"<h3>{heading}</h3><p>{safe_html(codes)}</p>{table}{note}"


def _tracks(estimates: Iterable[tuple[str, Estimate | None]]) -> str:
    """A table of estimates, each drawn as a point on a line with its interval."""
    lines = []
    for name, estimate in estimates:
        track = _NOTHING if estimate is None else plot.track(estimate)
        lines.append([safe_html(name), track, _cell(estimate)])
    return _table([], lines)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return _NOTHING
    return f"{estimate.value:.3f} <small>[{estimate.low:.3f}, {estimate.high:.3f}]</small>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table. `head` is text, the cells of `lines` are markup."""
    parts = ['<div class="wide"><table>']
    if head:
        cells = "".join(f"<th>{safe_html(name)}</th>" for name in head)
        parts.append(f"<thead><tr>{cells}</tr></thead>")
    parts.append("<tbody>")
    for line in lines:
        cells = "".join(f"<td>{cell}</td>" for cell in line)
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</tbody></table></div>")
    return "".join(parts)
