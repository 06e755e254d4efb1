"""RM-Bench: the matrix, Hard, Normal and Easy by hand, domains from fields and file names, macro
and micro by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.eval_data import by_text, outcome_of, titles, values, write
from tokenreward.eval import Dataset, load


def row(n: int, **fields: Any) -> dict[str, Any]:
    """A row of RM-Bench's files; its responses are named for the scores below."""
    sides = {
        side: [f"{side[0]}{n}{style}" for style in range(3)] for side in ("chosen", "rejected")
    }
    return {"id": n, "prompt": f"question {n}", **sides, **fields}


def scores(n: int, chosen: list[float], rejected: list[float]) -> dict[str, float | None]:
    pairs = (("c", chosen), ("r", rejected))
    return {
        f"{side}{n}{style}": value for side, values in pairs for style, value in enumerate(values)
    }


# Chosen 1, 2, 3 against rejected 0, 2, 5:
#   1 > 0 yes, 2 tie-free no, 5 no; 2 > 0 yes, 2 > 2 no (tie), no; 3 > 0 yes, 3 > 2 yes, no
FIRST = scores(0, [1, 2, 3], [0, 2, 5])
FIRST_WINS = [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
ALL = scores(1, [9, 9, 9], [0, 0, 0])
NONE = scores(2, [0, 0, 0], [9, 9, 9])
SAFETY = scores(3, [9] * 3, [0] * 3) | scores(4, [9] * 3, [0] * 3) | scores(5, [0] * 3, [9] * 3)
WHOLE = FIRST | ALL | NONE | SAFETY


def files(folder: Path, **rows: list[dict[str, Any]]) -> list[Path]:
    """One JSON array per domain, named as RM-Bench names them."""
    names = {name: name.replace("_", "-") + "_filtered.json" for name in rows}
    return [write(folder / names[name], each, as_array=True) for name, each in rows.items()]


@pytest.fixture
def whole(tmp_path: Path) -> Dataset:
    """Four domains; safety is two files with three prompts in all."""
    return load(
        files(
            tmp_path,
            chat=[row(0)],
            math=[row(1)],
            code=[row(2)],
            safety_refuse=[row(3), row(4)],
            safety_response=[row(5)],
        )
    )


def test_one_prompt_by_hand(tmp_path: Path) -> None:
    outcome = outcome_of(load(files(tmp_path, chat=[row(0)])), by_text(FIRST))
    assert outcome.judgement.matrices["chat"].tolist() == FIRST_WINS
    classes = {name: scores.tolist() for name, scores in outcome.judgement.classes.items()}
    assert classes == {"chosen": [1, 2, 3], "rejected": [0, 2, 5]}
    hard, normal, easy = 0 / 3, 1 / 3, 3 / 3
    expected = {
        "hard": hard,
        "normal": normal,
        "easy": easy,
        "macro": (hard + normal + easy) / 3,
        "micro": 4 / 9,
    }
    assert values(outcome) == pytest.approx(expected)
    assert outcome.judgement.counts == {
        "prompts": 1,
        "judged": 1,
        "failed": 0,
        "comparisons": 9,
        "ties": 1,
    }


def test_domains_are_weighed_alike_in_the_macro_and_prompts_in_the_micro(whole: Dataset) -> None:
    outcome = outcome_of(whole, by_text(WHOLE))
    by_domain = {"chat": 4 / 9, "math": 1.0, "code": 0.0, "safety": 2 / 3}
    assert {
        name: figure and figure.value for name, figure in outcome.judgement.groups.items()
    } == pytest.approx(by_domain)
    assert values(outcome)["macro"] == pytest.approx(np.mean(list(by_domain.values())))
    assert values(outcome)["micro"] == pytest.approx((4 / 9 + 1 + 0 + 1 + 1 + 0) / 6)
    # Macro of each difficulty: chat's own, and all, none, two thirds everywhere.
    assert values(outcome)["hard"] == pytest.approx((0 + 1 + 0 + 2 / 3) / 4)
    assert values(outcome)["easy"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert titles(outcome)[0] == "RM-Bench average (macro)"


@pytest.mark.parametrize("present", [["chat"], ["chat", "code", "safety_refuse"]])
def test_missing_domain_is_not_called_the_rm_bench_average(
    tmp_path: Path, present: list[str]
) -> None:
    dataset = load(files(tmp_path, **{name: [row(n)] for n, name in enumerate(present)}))
    outcome = outcome_of(dataset, by_text(FIRST | ALL | NONE))
    assert not any("RM-Bench average" in title for title in titles(outcome))
    assert titles(outcome)[0].startswith("macro over chat")
    assert "math" in outcome.judgement.notes[0]
    assert "not the RM-Bench average" in outcome.judgement.notes[0]


def test_other_domain_is_not_the_rm_bench_average_either(tmp_path: Path) -> None:
    rows = [
        row(n, domain=name)
        for n, name in enumerate(["chat", "math", "code", "safety-refuse", "poetry"])
    ]
    dataset = load([write(tmp_path / "total_dataset.json", rows, as_array=True)])
    all_scores = FIRST | ALL | NONE | scores(3, [1] * 3, [0] * 3) | scores(4, [1] * 3, [0] * 3)
    outcome = outcome_of(dataset, by_text(all_scores))
    assert titles(outcome)[0] == "macro over chat, math, code, safety, poetry"


def test_domain_field_pools_safety(tmp_path: Path) -> None:
    rows = [row(n, domain=name) for n, name in enumerate(["safety-refuse", "safety-response"])]
    outcome = outcome_of(
        load([write(tmp_path / "total_dataset.json", rows, as_array=True)]), by_text(FIRST | ALL)
    )
    groups = {name: figure and figure.value for name, figure in outcome.judgement.groups.items()}
    assert groups == {"safety": pytest.approx((4 / 9 + 1) / 2)}


def test_prompt_with_a_failed_answer_counts_nowhere(whole: Dataset) -> None:
    outcome = outcome_of(whole, by_text(WHOLE | {"r51": None}))
    assert outcome.judgement.counts["failed"] == 1
    assert values(outcome)["micro"] == pytest.approx((4 / 9 + 1 + 0 + 1 + 1) / 5)
    incomplete = outcome_of(whole, by_text(WHOLE | {"c20": None}))
    assert incomplete.judgement.groups["code"] is None
    assert values(incomplete)["macro"] is None
    assert "code" not in incomplete.judgement.matrices


def test_hard_is_the_upper_triangle(tmp_path: Path) -> None:
    """Plain right answers lose to dressed-up wrong ones: a scorer that likes style is bad at Hard,
    good at Easy."""
    outcome = outcome_of(
        load(files(tmp_path, chat=[row(0)])), by_text(scores(0, [1, 2, 3], [1.5, 2.5, 3.5]))
    )
    assert values(outcome)["hard"] == 0.0
    assert values(outcome)["normal"] == 0.0
    assert values(outcome)["easy"] == 1.0


def test_example_is_the_worst_of_nine(tmp_path: Path) -> None:
    outcome = outcome_of(load(files(tmp_path, chat=[row(0)])), by_text(FIRST))
    ((example,),) = outcome.judgement.examples.values()
    assert example.margin == 4
    assert list(example.responses) == [
        "chosen, concise, score +1",
        "rejected, Markdown, score +5",
    ]
