"""Solutions in steps: every form, the first wrong step, F1 as ProcessBench defines it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.eval_data import TIMING, outcome_of, share_in_order, titles, values, write
from tokenreward.eval import Candidate, CandidateAnswer, EvalError, load
from tokenreward.eval.answer import answer_of
from tokenreward_client import Rewards

TEXTS = ["Step 1: 2 and 2 are 4.", "Step 2: 4 and 1 are 6.", "The answer is 6."]
SHEPHERD = " ки\n".join(TEXTS)
PRM800K: dict[str, Any] = {
    "question": {"problem": "2+2+1?"},
    "label": {
        "steps": [
            {
                "completions": [{"text": "other", "rating": -1}, {"text": TEXTS[0], "rating": 1}],
                "human_completion": None,
                "chosen_completion": 1,
            },
            {"completions": [{"text": TEXTS[1], "rating": -1}], "chosen_completion": None},
            {"completions": None, "human_completion": {"text": TEXTS[2], "rating": None}},
        ]
    },
}
FORMS: dict[str, dict[str, Any]] = {
    "ProcessBench": {"id": "gsm8k-0", "problem": "2+2+1?", "steps": TEXTS, "label": 1},
    "TRL": {"prompt": "2+2+1?", "completions": TEXTS, "labels": [True, False, True]},
    "PRM800K": PRM800K,
    "Math-Shepherd": {
        "input": f"2+2+1? {SHEPHERD} ки",
        "label": f"2+2+1? {TEXTS[0]} +\n{TEXTS[1]} -\n{TEXTS[2]} +",
        "task": "GSM8K",
    },
    "PRMBench": {
        "original_process": ["x"],
        "modified_question": "2+2+1?",
        "modified_process": TEXTS,
        "error_steps": [2],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_form_is_read_into_steps_with_a_flag_for_each(tmp_path: Path, form: str) -> None:
    dataset = load([write(tmp_path / "rows.jsonl", [FORMS[form]])])
    assert (dataset.kind, dataset.reason.split("'")[0]) == ("steps", f"its rows have {form}")
    (candidate,) = dataset.candidates
    item = candidate.item
    assert item["prompt"] == [{"role": "user", "content": "2+2+1?"}]
    assert [item["response"][start:end].strip() for start, end in item["steps"]] == TEXTS
    assert item["spans"] == item["steps"]
    assert item["spans"][-1][1] == len(item["response"])
    assert candidate.require_flags().tolist() == [False, True, False]
    (raw,) = load([write(tmp_path / "rows.jsonl", [FORMS[form]])], prompt_as="raw").candidates
    assert raw.item["prompt"] == "2+2+1?"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            FORMS["ProcessBench"] | {"label": 3},
            "`label` must be a whole number from -1 to 2, got 3",
        ),
        (FORMS["ProcessBench"] | {"label": "1"}, "`label` must be a whole number"),
        (FORMS["ProcessBench"] | {"steps": ["a", " "]}, "`steps[1]` is a step without text"),
        (
            FORMS["TRL"] | {"labels": [True]},
            "`labels` must be a list of 3 flags, one per completion",
        ),
        ({"question": {"problem": "q"}, "label": {"steps": []}}, "`label.steps` must be a list of"),
        ({"question": {}, "label": {}}, "`question.problem` must be a string, got null"),
        (
            {"question": {"problem": "q"}, "label": {"steps": [{"completions": []}]}},
            "`label.steps[0].completions` must have a completion with a text",
        ),
        (
            {
                "question": {"problem": "q"},
                "label": {"steps": [{"completions": [{"text": "a"}], "chosen_completion": "0"}]},
            },
            "`label.steps[0].completions` must have a completion with a text",
        ),
        (FORMS["Math-Shepherd"] | {"label": "x"}, "`label` is not `input` with + or -"),
        (FORMS["Math-Shepherd"] | {"input": "Step 1: a ки b"}, "`label` is not `input`"),
        ({"input": "no step ки", "label": "no step +"}, "`input` has no `Step 1`"),
        ({"input": "q Step 1: a ки b", "label": "q Step 1: a + b"}, "`input` must end in `ки`"),
        (
            FORMS["PRMBench"] | {"error_steps": [4]},
            "`error_steps` must be a whole number from 1 to",
        ),
    ],
)
def test_row_that_is_not_of_its_form_is_refused_by_its_field(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvalError) as caught:
        load([write(tmp_path / "rows.jsonl", [row])])
    assert message in str(caught.value)


def solved(
    label: int, scores: list[float], name: str = "gsm8k"
) -> tuple[dict[str, Any], list[float]]:
    texts = [f"{name} {place} {label} {scores}" for place in range(len(scores))]
    return {"id": f"{name}-{label + 1}", "problem": "q", "steps": texts, "label": label}, scores


def test_f1_is_process_benchs_and_the_area_ends_with_the_first_wrong_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for n in range(160):
        name = ("gsm8k", "math", "olympiadbench", "omnimath")[n % 4]
        label = int(rng.integers(-1, 4))
        scores = rng.uniform(0.3, 1, 4)
        if label >= 0:
            scores[label] -= rng.uniform(0, 0.5)
        cases.append(solved(label, scores.round(6).tolist(), name))
    dataset = load([write(tmp_path / "rows.jsonl", [row for row, _ in cases])])
    given = {row["steps"][0]: scores for row, scores in cases}

    def answer(candidate: Candidate) -> CandidateAnswer:
        first = candidate.item["response"].split("\n\n")[0]
        return CandidateAnswer(steps=np.array(given[first]), timing=TIMING)

    judged = outcome_of(dataset, answer)
    figures, f1s = values(judged), []
    for name in ("gsm8k", "math", "olympiadbench", "omnimath", ""):
        hits: dict[bool, list[bool]] = {True: [], False: []}
        for row, scores in cases:
            low = [place for place, score in enumerate(scores) if score < 0.5]
            if row["id"].startswith(name):
                hits[row["label"] == -1].append((low[0] if low else -1) == row["label"])
        on_wrong, on_right = np.mean(hits[False]), np.mean(hits[True])
        f1s.append(2 * on_wrong * on_right / (on_wrong + on_right))
    assert figures["accuracy_wrong"] == pytest.approx(on_wrong)
    assert figures["accuracy_right"] == pytest.approx(on_right)
    assert figures["f1"] == pytest.approx(f1s[-1])
    assert figures["f1_macro"] == pytest.approx(np.mean(f1s[:-1]))
    assert titles(judged)[1] == "ProcessBench average F1"
    groups = {name: each.value for name, each in judged.judgement.groups.items()}
    assert list(groups.values()) == pytest.approx(f1s[:-1])
    labels, lows = [], []
    for row, scores in cases:
        num = len(scores) if row["label"] == -1 else row["label"] + 1
        labels += [place == row["label"] for place in range(num)]
        lows += [-score for score in scores[:num]]
    assert figures["step_auc"] == pytest.approx(share_in_order(labels, lows))
    f1 = judged.judgement.columns["f1"][1]
    assert f1.low < f1.value < f1.high


def test_without_solutions_of_a_kind_there_is_no_f1(tmp_path: Path) -> None:
    dataset = load([write(tmp_path / "rows.jsonl", [solved(0, [0.1, 0.9])[0]])])
    judged = outcome_of(
        dataset, lambda _: CandidateAnswer(steps=np.array([0.1, 0.9]), timing=TIMING)
    )
    assert values(judged) == {
        "f1": None,
        "accuracy_wrong": 1,
        "accuracy_right": None,
        "step_auc": None,
    }


def test_step_scores_are_probabilities_and_none_is_an_error(tmp_path: Path) -> None:
    dataset = load([write(tmp_path / "rows.jsonl", [solved(0, [0.1, 0.9])[0]])])
    (candidate,) = dataset.candidates
    ids = np.array([0, 1])
    signed = Rewards(
        np.zeros(2, np.float32), step_scores=np.array([-1, 0.5], np.float32), step_ids=ids
    )
    answer = answer_of(candidate, signed, TIMING, is_signed=True)
    assert answer.steps is not None
    assert answer.steps.tolist() == [0, 0.75]
    for scores in (None, np.zeros(3, np.float32)):
        missing = Rewards(np.zeros(2, np.float32), step_scores=scores, step_ids=ids)
        error = answer_of(candidate, missing, TIMING).error
        assert error is not None
        assert error.code == "no_step_scores"


def test_prm_score_is_the_mean_of_two_f1s_over_all_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows, scores = [], {}
    for n in range(60):
        errors = [] if n % 3 == 2 else sorted(rng.choice(5, 2, replace=False) + 1)
        texts = [f"{n} {place}" for place in range(5)]
        row = {"modified_question": "q", "modified_process": texts, "original_process": ["x"]}
        classification = ("circular", "deception", "multi_solutions")[n % 3]
        rows.append(
            {**row, "error_steps": list(map(int, errors)), "classification": classification}
        )
        scores[texts[0]] = rng.uniform(0, 1, 5).round(2)
    dataset = load([write(tmp_path / "rows.jsonl", rows)])

    def answer(candidate: Candidate) -> CandidateAnswer:
        first = candidate.item["response"].split("\n\n")[0]
        return CandidateAnswer(steps=scores[first], timing=TIMING)

    judged = outcome_of(dataset, answer)
    assert titles(judged)[0] == "PRMScore"
    assert judged.judgement.groups_title == "PRMScore by classification"

    def by_hand(names: set[str]) -> float:
        called = {"right": [0, 0, 0], "wrong": [0, 0, 0]}  # hits, false alarms, misses
        for row in rows:
            if row["classification"] not in names:
                continue
            for place in range(5):
                truth = "wrong" if place + 1 in row["error_steps"] else "right"
                guess = "right" if scores[row["modified_process"][0]][place] >= 0.5 else "wrong"
                if truth == guess:
                    called[truth][0] += 1
                else:
                    called[guess][1] += 1
                    called[truth][2] += 1
        f1s = [
            2 * hits / (2 * hits + alarms + misses)
            for hits, alarms, misses in called.values()
            if hits + misses
        ]
        return float(np.mean(f1s))

    every = {row["classification"] for row in rows}
    assert values(judged)["prm_score"] == pytest.approx(by_hand(every))
    groups = {name: each.value for name, each in judged.judgement.groups.items()}
    assert groups == pytest.approx({name: by_hand({name}) for name in every})


@pytest.mark.parametrize(
    ("steps", "reason", "flags"),
    [
        ([1, 0, None, 1], "solution", None),
        ([1, -1, None], "found_error", [False, True]),
        ([1, 1], "give_up", None),
        ([1, 1], "bad_problem", None),
        ([1, -1], "give_up", [False, True]),
        ([1, 1], "solution", [False, False]),
    ],
)
def test_solution_of_prm800k_that_was_not_rated_to_its_end_is_left_out(
    tmp_path: Path, steps: list[int | None], reason: str, flags: list[bool] | None
) -> None:
    entries = [
        {"completions": [{"text": f"step {place}", "rating": rating}], "chosen_completion": 0}
        for place, rating in enumerate(steps)
    ]
    row = {"question": {"problem": "q"}, "label": {"steps": entries, "finish_reason": reason}}
    dataset = load([write(tmp_path / "rows.jsonl", [row, PRM800K])])
    first, *others = [each.require_flags().tolist() for each in dataset.candidates]
    assert first == (flags or [False, True, False])
    assert (len(others), dataset.num_left_out) == ((1, 0) if flags else (0, 1))
