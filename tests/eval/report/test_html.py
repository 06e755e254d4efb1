"""The page: well-formed, needs nothing from elsewhere, shows every kind, and takes hostile text as
text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.eval_data import FAILED, TIMING, per_character, subject, write
from tokenreward.eval import Candidate, CandidateAnswer, Dataset, ScorerOutcome, Subject, load
from tokenreward.eval.report import html_report, json_report, plot, text_report
from tokenreward.eval.report.response import response_html
from tokenreward.eval.statistics import Estimate, roc_curve
from tokenreward.wire import ErrorDetail

VOID = {"meta", "rect", "path", "circle", "polyline"}
TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "small",
        "figure",
    ),
    *(
        "figcaption",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "b",
        "i",
        "u",
        "svg",
        "text",
    ),
    *("rect", "path", "circle", "polyline"),
}
HOSTILE = (
    "\"><script src=//evil>x</script><img src=x onerror=alert(1)>' "
    "</div></style>&lt;\x1b[2J\u202e\x00"
)


class Reader(HTMLParser):
    """Fails on a tag that is not closed or not known; keeps the text and the attributes."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.seen.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(source: str) -> Reader:
    """The page, once it is known to load and run nothing."""
    reader = Reader(source)
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "srcset", "data", "action", "xlink:href"}
    assert not any(name.startswith("on") for name in names)
    styles = [value or "" for name, value in reader.attributes if name == "style"]
    assert all(re.fullmatch(r"background:#[0-9a-f]{6}", style) for style in styles)
    assert "url(" not in source
    assert "@import" not in source
    assert ("http-equiv", "Content-Security-Policy") in reader.attributes
    return reader


def score_of(text: str) -> float:
    return float(len(text) % 7)


def answer(candidate: Candidate) -> CandidateAnswer:
    text = candidate.item["response"]
    if text.startswith("fail"):
        return dataclasses.replace(
            FAILED, error=ErrorDetail(code="sequence_too_long", message=HOSTILE)
        )
    if candidate.needs_units and "spans" not in candidate.item:
        rewards = [float(ord(char) % 5 - 2) for char in text] + [1.0]
        return dataclasses.replace(per_character(rewards, text), score=score_of(text))
    if candidate.needs_units:
        spans = np.array(candidate.item["spans"])
        ones = np.ones(len(spans), dtype=np.float32)
        return CandidateAnswer(score_of(text), ones, spans, timing=TIMING)
    return CandidateAnswer(score_of(text), timing=TIMING)


def outcome(dataset: Dataset, who: Subject | None = None) -> ScorerOutcome:
    whole = dataset.outcome(who or subject(), [answer(each) for each in dataset.candidates])
    examples = dataset.example_candidates(whole)
    return dataclasses.replace(
        whole, example_answers={index: answer(each) for index, each in examples.items()}
    )


def styles(n: int) -> dict[str, Any]:
    return {"chosen": [f"c{n}", "cc", "ccc"], "rejected": ["r", f"rr{n}", "rrr"]}


KINDS: dict[str, list[dict[str, Any]]] = {
    "rm-bench": [
        {"id": n, "prompt": "q", "domain": domain, **styles(n)}
        for n, domain in enumerate(("chat", "code"))
    ],
    "preference": [
        {
            "prompt": "q",
            "chosen": "good" * n,
            "rejected": "bad and worse"[: n + 1],
            "subset": f"s{n % 3}",
        }
        | ({"rejected_flagged": [[0, 1]]} if n % 2 else {})
        for n in range(25)
    ],
    "best-of-n": [
        {"prompt": "q", "responses": ["a", "bb" * n, "c"], "labels": [1, 0, 0]}
        for n in range(1, 14)
    ],
    "tokens": [
        {"prompt": "q", "response": "abcdef", "flagged": [[1, 3]]},
        {"prompt": "q", "response": "abcdef", "spans": [[0, 3], [3, 6]], "flags": [0, 1]},
        {"prompt": "q", "response": "failing", "flagged": []},
    ],
}


@pytest.fixture(params=list(KINDS))
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return load([write(tmp_path / "data", KINDS[request.param])], kind=request.param)


def test_page_of_every_kind_is_well_formed_and_has_every_figure(dataset: Dataset) -> None:
    rows = [
        outcome(dataset),
        outcome(dataset, dataclasses.replace(subject(), label="the second")),
    ]
    reader = read(html_report(dataset, rows, title="a title"))
    for row in rows:
        assert row.subject.label in reader.text
        for title, estimate in row.judgement.columns.values():
            assert title in reader.text
            assert estimate is None or f"{estimate.value:.3f}" in reader.text
        for name in row.judgement.groups:
            assert name in reader.text
            assert f"{row.judgement.groups_title}" in reader.text
            assert row.judgement.groups_title
        for note in row.judgement.notes:
            assert note in reader.text
        for examples in row.judgement.examples.values():
            assert len(examples) <= 10
            assert all(example.where in reader.text for example in examples)
    assert reader.seen >= {"svg", "table", "details"}


def test_page_fits_narrow_screens_and_both_modes(dataset: Dataset) -> None:
    source = html_report(dataset, [outcome(dataset)], title="t")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    assert "prefers-color-scheme:dark" in source
    widths = [int(width) for width in re.findall(r'viewBox="0 0 (\d+) ', source)]
    assert max(widths) <= 360


def test_hostile_text_is_text_everywhere(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": HOSTILE + "P",
            "chosen": HOSTILE + "C",
            "rejected": HOSTILE + "longer",
            "subset": HOSTILE + "S",
        },
        {
            "prompt": [{"role": HOSTILE, "content": [{"type": HOSTILE}]}],
            "chosen": "ok",
            "rejected": "fail",
            "subset": "s",
        },
    ]
    dataset = load([write(tmp_path / "data", rows)])
    who = dataclasses.replace(
        subject(type=HOSTILE, model=HOSTILE), label=HOSTILE + "L", options={HOSTILE: HOSTILE}
    )
    reader = read(html_report(dataset, [outcome(dataset, who)], title=HOSTILE + "T"))
    shown = HOSTILE.replace("\x1b", "\ufffd").replace("\u202e", "\ufffd").replace("\x00", "\ufffd")
    for mark in "PCSLT":
        assert shown + mark in reader.text
    assert "\x1b" not in reader.text
    printed = text_report(dataset, [outcome(dataset, who)])
    assert "\x1b" not in printed
    assert "\x00" not in printed


def test_hostile_domain_stays_inside_the_attributes_of_its_plot(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": "q", "domain": HOSTILE, **styles(1)}]
    dataset = load([write(tmp_path / "data", rows)])
    reader = read(html_report(dataset, [outcome(dataset)], title="t"))
    assert any(
        name == "aria-label" and value and "<script" in value for name, value in reader.attributes
    )


def test_hostile_name_of_a_unit_is_text() -> None:
    units = CandidateAnswer(None, np.array([1.0], dtype=np.float32), np.array([[0, 0]]), (HOSTILE,))
    assert "<script" not in response_html("", units, strongest=1.0)


@given(st.text(max_size=30), st.data())
def test_a_response_has_every_character_once_and_underlines_what_is_flagged(
    text: str, data: st.DataObject
) -> None:
    flags = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text))), dtype=bool
    )
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=4))})
    spans = np.array([*itertools.pairwise(cuts), (len(text), len(text))])
    units = CandidateAnswer(None, np.zeros(len(spans), dtype=np.float32), spans, ("END",))
    source = response_html(text, units, strongest=1.0, flagged=flags)

    class Underlined(Reader):
        underlined = ""

        def handle_data(self, data: str) -> None:
            super().handle_data(data)
            if "u" in self.open:
                self.underlined += data

    reader = Underlined(source)
    expected = [char if reader.text[place] == char else "\ufffd" for place, char in enumerate(text)]
    assert reader.text == "".join(expected) + "END"
    assert reader.underlined == "".join(
        char for char, flag in zip(expected, flags, strict=True) if flag
    )


def test_colours_are_red_white_and_green() -> None:
    rewards = np.array([0, -2, 2, -14], dtype=np.float32)
    units = CandidateAnswer(None, rewards, np.zeros((4, 2), dtype=int))
    colours = re.findall("background:(#[0-9a-f]{6})", response_html("", units, strongest=2.0))
    assert colours == ["#ffffff", "#dd4c46", "#34a853", "#dd4c46"]


def test_scorer_without_any_answer_has_a_page_a_table_and_a_record(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "fail1", "rejected": "fail2"}] * 150
    dataset = load([write(tmp_path / "data", rows)])
    row = outcome(dataset)
    reader = read(html_report(dataset, [row], title="t"))
    assert "300 of 300 items have no answer" in reader.text
    assert "sequence_too_long 300" in reader.text
    assert "and 200 more" in reader.text
    printed = text_report(dataset, [row])
    assert "mine    -              -        0     300" in printed
    assert "and 295 more" in printed
    (report,) = json_report(dataset, [row], files=["data"])["scorers"]
    assert report["figures"]["accuracy"] == {"title": "pair accuracy", "value": None}
    assert len(report["errors"]) == 300
    assert report["error_codes"] == {"sequence_too_long": 300}


def test_record_is_json_and_has_every_figure_with_its_interval(dataset: Dataset) -> None:
    row = outcome(dataset)
    report = json.loads(json.dumps(json_report(dataset, [row], files=["a"]), allow_nan=False))
    assert report["kind"] == dataset.kind
    (scorer,) = report["scorers"]
    for name, (_, estimate) in row.judgement.columns.items():
        figure = scorer["figures"][name]
        if estimate is not None:
            assert (figure["value"], figure["low"], figure["high"]) == (
                estimate.value,
                estimate.low,
                estimate.high,
            )
    assert scorer["counts"] == dict(row.judgement.counts)
    assert scorer["latency"]["per_item_s"] == pytest.approx(0.125)


def test_histogram_counts_shares_of_each_class() -> None:
    source = plot.histogram({"chosen": np.array([0.0, 0.0, 1.0, 1.0]), "rejected": np.array([0.0])})
    first, second = re.findall(r'class="(?:first|second)" opacity="0.6" d="M30 160([^"]*)"', source)
    # All of `rejected` is in the first bin, the highest of all; half of `chosen` is in the first,
    # half in the last.
    assert second.startswith("V30.0H41.0V160.0")
    assert first.startswith("V95.0H41.0V160.0")
    assert first.endswith("V95.0H360.0V160Z")
    assert "chosen (mean 0.5)" in source


@pytest.mark.parametrize("values", [[3.0], [1e30, 1e30], [-1e-30, 1e-30], [0.0]])
def test_histogram_of_nearly_equal_scores_is_drawn(values: list[float]) -> None:
    Reader(plot.histogram({"chosen": np.array(values), "rejected": np.empty(0)}))


def test_track_and_bar_and_heat_map_and_curve_are_where_they_should_be() -> None:
    assert 'cx="80.0"' in plot.track(Estimate(0.5, 0.25, 0.75, 9, "wilson"))
    assert "M42.0 8H118.0" in plot.track(Estimate(0.5, 0.25, 0.75, 9, "wilson"))
    assert 'width="80.0"' in plot.bar(0.5, "half")
    cells = re.findall(
        r'class="(first|second)"', plot.heat_map(np.array([[0.9, 0.1], [0.5, 0.4]]), "ab", "n")
    )
    assert cells == ["first", "second", "first", "second"]
    curve = roc_curve(np.array([True, False]), np.array([1.0, 0.0]))
    assert curve is not None
    assert 'points="30.0,240.0 30.0,20.0 250.0,20.0"' in plot.roc(curve, "n")
