"""The text for a terminal: aligned, no wider than it may be, and nothing lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from fakes.eval_data import FAILED, TIMING, subject, write
from tokenreward.eval import CandidateAnswer, Dataset, ScorerOutcome, load
from tokenreward.eval.report import text_report
from tokenreward.wire import ErrorDetail


def pairs(folder: Path, subsets: Sequence[str]) -> Dataset:
    rows = [{"prompt": "q", "chosen": "aa", "rejected": "a", "subset": name} for name in subsets]
    return load([write(folder / "data", rows)])


def row(dataset: Dataset, label: str) -> ScorerOutcome:
    """Longer responses score higher."""
    answers = [
        CandidateAnswer(float(len(each.item["response"])), timing=TIMING)
        for each in dataset.candidates
    ]
    return dataset.outcome(dataclasses.replace(subject(), label=label), answers)


def test_table_is_aligned_and_says_all(tmp_path: Path) -> None:
    dataset = pairs(tmp_path, ("x", "a longer name"))
    text = text_report(dataset, [row(dataset, "a"), row(dataset, "bb")])
    assert text.startswith(
        "2 pairs (preference), 95 % intervals in brackets\n\nscorer  pair accuracy "
    )
    assert "bb      1.000 [0.342, 1.000]  1.000 [0.439, 1.000]  125      0     0\n" in text
    assert "\n\nms/item: wall time over items scored, up to 8 requests in flight\n\n" in text
    assert "\n\npair accuracy by subset:\n               a " in text
    assert "a longer name  1.000 [0.207, 1.000]  1.000 [0.207, 1.000]" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_many_scorers_take_more_lines_and_no_more_width(tmp_path: Path, width: int) -> None:
    dataset = pairs(tmp_path, ("math", "code", "safety"))
    labels = [f"scorer {number}" for number in range(13)]
    text = text_report(dataset, [row(dataset, label) for label in labels], width=width)
    assert max(map(len, text.splitlines())) <= width
    *_, groups = text.partition("by subset:\n")
    blocks = [block.splitlines() for block in groups.split("\n\n")]
    assert [block[1].split()[0] for block in blocks] == ["math"] * len(blocks)
    assert [
        label.strip() for block in blocks for label in block[0].split("  ") if label.strip()
    ] == labels
    assert sum(line.count("1.000 [0.207, 1.000]") for block in blocks for line in block) == 13 * 3


def test_one_column_wider_than_allowed_is_shown_whole(tmp_path: Path) -> None:
    dataset = pairs(tmp_path, ("a subset whose name is long",))
    text = text_report(dataset, [row(dataset, "first"), row(dataset, "second")], width=10)
    assert text.count("a subset whose name is long  1.000 [0.207, 1.000]") == 2


def test_text_of_others_cannot_steer_the_terminal(tmp_path: Path) -> None:
    unsafe = "\u202e\u202a\u2066\u2069\u200f\u061c\x1b\x9b"
    dataset = pairs(tmp_path, ("x" + unsafe,))
    error = ErrorDetail(code="non_finite", message=f"is {unsafe}")
    answers = [CandidateAnswer(error=error), CandidateAnswer(1.0)]
    who = dataclasses.replace(subject(), label=f"mine{unsafe}")
    text = text_report(dataset, [dataset.outcome(who, answers)])
    assert not set(unsafe) & set(text)
    bad = "\N{REPLACEMENT CHARACTER}" * len(unsafe)
    assert {f"mine{bad}", f"x{bad}"} <= set(text.split())
    assert f"non_finite: is {bad}" in text


def test_errors_are_counted_by_code_the_most_frequent_first(tmp_path: Path) -> None:
    dataset = pairs(tmp_path, ("x", "y"))
    other = CandidateAnswer(error=ErrorDetail(code="non_finite", message="is nan"))
    text = text_report(
        dataset, [dataset.outcome(subject(), [other, FAILED, FAILED, CandidateAnswer(1.0)])]
    )
    assert (
        "mine: 3 of 4 items have no answer and count nowhere: sequence_too_long 2, non_finite 1\n"
        in text
    )
