"""Best of n: top-ranked between chance and ceiling, ties as lotteries, areas by hand; GSM8K's file
as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.eval_data import by_text, outcome_of, values, write
from tokenreward.eval import Dataset, load

ROWS = [
    {"prompt": "p", "responses": ["a", "b", "c"], "labels": [1, 0, 0]},  # a on top: right
    {"prompt": "q", "responses": ["d", "e"], "labels": [False, True]},  # d on top: wrong
    {
        "prompt": "r",
        "responses": ["f", "g", "h"],
        "labels": [1, 0, 0],
    },  # f, g, h share the top: one third
    {"prompt": "s", "responses": ["i", "j"], "labels": [0, 0]},  # no right response
]
SCORES: dict[str, float | None] = {
    "a": 5,
    "b": 4,
    "c": 1,
    "d": 3,
    "e": 2,
    "f": 0,
    "g": 0,
    "h": 0,
    "i": 9,
    "j": 9,
}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load([write(tmp_path / "groups.jsonl", ROWS)])


def test_figures_by_hand(dataset: Dataset) -> None:
    row = outcome_of(dataset, by_text(SCORES))
    figures = values(row)
    assert figures["top_ranked"] == pytest.approx((1 + 0 + 1 / 3 + 0) / 4)
    assert figures["random"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 0) / 4)
    assert figures["oracle"] == pytest.approx(3 / 4)
    assert figures["auc_within"] == pytest.approx((1 + 0 + 0.5) / 3)
    # Right: 5, 2, 0. Wrong: 4, 1, 3, 0, 0, 9, 9. 5 beats 5 of 7; 2 beats 1, 0, 0; 0 ties with two.
    assert figures["auc_pooled"] == pytest.approx((5 + 3 + 1) / 21)
    counts = {"prompts": 4, "judged": 4, "failed": 0, "with right and wrong": 3, "ties": 1}
    assert row.judgement.counts == counts


def test_failed_answer_takes_its_prompt_out_of_every_figure(dataset: Dataset) -> None:
    row = outcome_of(dataset, by_text(SCORES | {"g": None}))
    assert values(row)["oracle"] == pytest.approx(2 / 3)
    assert values(row)["random"] == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert row.judgement.counts["failed"] == 1


def test_example_sets_the_best_wrong_response_against_the_best_right_one(dataset: Dataset) -> None:
    row = outcome_of(dataset, by_text(SCORES))
    (examples,) = row.judgement.examples.values()
    assert [example.margin for example in examples] == [1, 0, -1]
    assert [
        dataset.candidates[index].item["response"] for index in examples[0].responses.values()
    ] == ["e", "d"]


def test_gsm8ks_solutions_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [
        {
            "question": "Janet\u2019s ducks?",
            "ground_truth": "A: 18",
            "6b_finetuning": {"is_correct": False, "solution": "no"},
            "6b_verification": {"is_correct": True, "solution": "yes"},
            "175b_finetuning": {"is_correct": False, "solution": "nay"},
            "175b_verification": {"is_correct": True, "solution": "aye"},
        }
    ]
    dataset = load([write(tmp_path / "example_model_solutions.jsonl", rows)])
    assert [candidate.item for candidate in dataset.candidates] == [
        {"prompt": [{"role": "user", "content": "Janet\u2019s ducks?"}], "response": text}
        for text in ("no", "yes", "nay", "aye")
    ]
    figures = values(outcome_of(dataset, by_text({"no": 3, "yes": 4, "nay": 1, "aye": 2})))
    assert figures["top_ranked"] == 1.0
    assert figures["random"] == 0.5
    assert figures["auc_pooled"] == pytest.approx(3 / 4)


def test_all_right_or_all_wrong_has_no_area(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "responses": ["a", "b"], "labels": [1, 1]}]
    row = outcome_of(load([write(tmp_path / "g.jsonl", rows)]), by_text({"a": 1, "b": 0}))
    expected = {
        "top_ranked": 1.0,
        "random": 1.0,
        "oracle": 1.0,
        "auc_pooled": None,
        "auc_within": None,
    }
    assert values(row) == expected
    assert row.judgement.curve is None
