"""Rows of published data sets: which pair, which right responses, which labels each of them holds,
and what says nothing of worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fakes.eval_data import by_text, outcome_of, share_in_order, values, write
from tokenreward.eval import EvalError, load

USER = {"role": "user", "content": "q"}
PAST = [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "q2"}]


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIRS: dict[str, tuple[dict[str, Any], Any]] = {
    "HelpSteer2": (
        {"prompt": "q", "response_1": "no", "response_2": "yes", "preference_strength": 2},
        [USER],
    ),
    "HelpSteer2, several turns": (
        {
            "prompt": "q\n<extra_id_1>Assistant\na\n<extra_id_1>User\nq2",
            "response_1": "yes",
            "response_2": "no",
            "preference_strength": -1,
        },
        PAST,
    ),
    "HelpSteer3": (
        {"context": PAST, "response1": "yes", "response2": "no", "overall_preference": -3},
        PAST,
    ),
    "PPE": ({"prompt": "q", "response_1": "no", "response_2": "yes", "winner": "model_b"}, [USER]),
    "JudgeBench": (
        {"question": "q", "response_A": "no", "response_B": "yes", "label": "B>A"},
        [USER],
    ),
    "SHP": (
        {"history": "q", "human_ref_A": "yes", "human_ref_B": "no", "labels": 1, "domain": "x"},
        [USER],
    ),
    "SHP, the other one": (
        {"history": "q", "human_ref_A": "no", "human_ref_B": "yes", "labels": 0},
        [USER],
    ),
    "Chatbot Arena": (
        {
            "conversation_a": [*PAST, says("yes")],
            "conversation_b": [*PAST, says("no")],
            "winner": "model_a",
        },
        PAST,
    ),
    "LMSYS": (
        {
            "prompt": '["q","q2"]',
            "response_a": '["a","yes"]',
            "response_b": '["a","no"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        PAST,
    ),
    "PKU-SafeRLHF": (
        {"prompt": "q", "response_0": "no", "response_1": "yes", "better_response_id": 1},
        [USER],
    ),
    "WebGPT": (
        {
            "question": {"full_text": "q"},
            "answer_0": "yes",
            "answer_1": "no",
            "score_0": 0.5,
            "score_1": -0.5,
        },
        [USER],
    ),
    "AlpacaFarm": (
        {"instruction": "q", "input": "", "output_1": "no", "output_2": "yes", "preference": 2},
        [USER],
    ),
    "LLMBar": ({"input": "q", "output_1": "yes", "output_2": "no", "label": 1}, [USER]),
    "UltraInteract": (
        {"trajectory": [{"from": "user", "value": "q"}], "chosen": "yes", "rejected": "no"},
        [USER],
    ),
    "Step-DPO": (
        {
            "prompt": "q",
            "initial_reason_steps": "First,",
            "chosen": "a step",
            "rejected": "another",
            "full_chosen": "yes",
            "full_rejected": "no",
        },
        [USER],
    ),
    "Alpaca with turns before": (
        {"instruction": "q2", "history": [["q", "a"]], "chosen": "yes", "rejected": "no"},
        PAST,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_is_read_with_the_better_response_first(tmp_path: Path, name: str) -> None:
    row, prompt = PAIRS[name]
    dataset = load([write(tmp_path / "rows.jsonl", [row])])
    assert dataset.kind == "preference"
    items = [candidate.item for candidate in dataset.candidates]
    assert items == [{"prompt": prompt, "response": text} for text in ("yes", "no")]


TIES = [
    PAIRS["HelpSteer2"][0] | {"preference_strength": 0},
    PAIRS["PPE"][0] | {"winner": "tie (bothbad)"},
    PAIRS["LMSYS"][0] | {"winner_model_a": 0, "winner_tie": 1},
    PAIRS["WebGPT"][0] | {"score_0": 0, "score_1": 0},
]


@pytest.mark.parametrize("tie", TIES)
def test_pair_without_a_better_response_is_left_out_and_counted(
    tmp_path: Path, tie: dict[str, Any]
) -> None:
    right = PAIRS["HelpSteer2"][0]
    if "preference_strength" not in tie:
        right = next(row for row, _ in PAIRS.values() if row.keys() == tie.keys())
    judged = outcome_of(
        load([write(tmp_path / "rows.jsonl", [tie, right, tie])]), by_text({"yes": 1, "no": 0})
    )
    assert judged.judgement.counts["pairs"] == 1
    assert judged.judgement.notes[-1].startswith("2 rows say nothing of which is right or better")
    with pytest.raises(EvalError, match="line 1: no row says which response is right or better"):
        load([write(tmp_path / "rows.jsonl", [tie])])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (PAIRS["PPE"][0] | {"winner": "gpt"}, "`winner` must be one of model_a, a, "),
        (PAIRS["SHP"][0] | {"labels": 2}, "`labels` must be one of 1, 0, got 2"),
        (PAIRS["HelpSteer3"][0] | {"overall_preference": "x"}, "must be a number, got a string"),
        (PAIRS["LMSYS"][0] | {"response_b": '["no"]'}, "`response_b` must hold 2 texts"),
        (PAIRS["Alpaca with turns before"][0] | {"history": [["q"]]}, "`history[0]` must be a tex"),
        (
            {"instruction": "q", "input": ["a"], "chosen": "yes", "rejected": "no"},
            "`input` must be a string, got a list of length 1",
        ),
        (
            {"system": ["s"], "prompt": "q", "chosen": "yes", "rejected": "no"},
            "`system` must be a string, got a list of length 1",
        ),
        (
            {"question": "q", "context": "c", "chosen": "yes", "rejected": "no"},
            "`context` stands beside `question`",
        ),
        (
            {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": None, "rank": 2}]},
            "`answers[1].answer` must be a string",
        ),
        (
            {"prompt": "q", "responses": ["a", "b"], "scores": [1]},
            "`scores` must be a list of 2 numbers, got a list of length 1",
        ),
        (
            {"prompt": "q", "completion": "a", "label": True, "flags": [1]},
            "--kind tokens (its rows have `completion` and `flags`) or --kind unpaired (its rows",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "responses": ["c"], "labels": [1]},
            "name one, --kind preference (",
        ),
        ({"prompt": "q", "completions": ["a"], "labels": [1]}, "--kind best-of-n (if they are se"),
        (PAIRS["JudgeBench"][0] | {"label": ["A>B"]}, "`label` must be one of "),
        ({"problem": "q", "steps": ["a"], "label": []}, "`label` must be the number of a step"),
        ({"problem": "q", "steps": ["a"], "label": [0, -1]}, "`label` must be the number of a "),
        (PAIRS["AlpacaFarm"][0] | {"preference": {}}, "`preference` must be one of "),
    ],
)
def test_what_cannot_be_read_for_sure_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvalError) as caught:
        load([write(tmp_path / "rows.jsonl", [row])])
    assert message in str(caught.value)


GROUPS: dict[str, dict[str, Any]] = {
    "scores": {"prompt": "q", "responses": ["b", "yes", "c"], "scores": [0.1, 0.9, 0.2]},
    "ranks": {"prompt": "q", "responses": ["b", "yes", "c"], "ranks": [3, 1, 2]},
    "PPE": {
        "prompt": "q",
        "response_1": "b",
        "response_2": "yes",
        "response_3": "c",
        "scores": [False, True, False],
    },
    "Nectar": {
        "prompt": "\n\nHuman: q\n\nAssistant: ",
        "answers": [{"answer": text, "rank": rank} for text, rank in zip("bc", (3, 2), strict=True)]
        + [{"answer": "yes", "rank": 1}],
    },
    "UltraFeedback": {
        "instruction": "q",
        "completions": [
            {"response": "b", "overall_score": 5.0},
            {"response": "yes", "overall_score": 8.5},
            {"response": "c", "overall_score": 7},
        ],
    },
    "PPE with a ground truth": {
        "question": "q",
        "ground_truth": "yes",
        "response_1": "b",
        "response_2": "yes",
        "response_3": "c",
        "scores": [0, 1, 0],
    },
    "labels": {"question": "q", "responses": ["b", "yes", "c"], "labels": [0, 1, 0]},
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("field", ["scores", "ranks"])
def test_worth_that_is_no_number_is_refused(tmp_path: Path, field: str, place: int) -> None:
    """No response would be the best one, or another than without it."""
    worths = [0.1, 0.9, 0.2]
    worths[place] = math.nan
    rows = [GROUPS["scores"], {"prompt": "q", "responses": ["b", "yes", "c"], field: worths}]
    with pytest.raises(EvalError, match=f"line 2: `{field}` must be numbers, got nan"):
        load([write(tmp_path / "rows.jsonl", rows)], kind="best-of-n")


@pytest.mark.parametrize("name", GROUPS)
def test_best_of_several_responses_is_right(tmp_path: Path, name: str) -> None:
    dataset = load([write(tmp_path / "rows.jsonl", [GROUPS[name]])])
    assert dataset.kind == "best-of-n"
    assert {c.item["response"]: c.is_right for c in dataset.candidates} == {
        "b": False,
        "yes": True,
        "c": False,
    }
    assert all(candidate.item["prompt"] == [USER] for candidate in dataset.candidates)


def test_completions_are_responses_or_steps_as_the_kind_says(tmp_path: Path) -> None:
    row = {"prompt": "q", "completions": ["a", "b"], "labels": [1, 0]}
    file = write(tmp_path / "rows.jsonl", [row])
    right, wrong = load([file], kind="best-of-n").candidates
    assert (right.is_right, wrong.is_right) == (True, False)
    (whole,) = load([file], kind="steps").candidates
    assert whole.require_flags().tolist() == [False, True]


KTO = [
    {"prompt": "q", "completion": "good", "label": True},
    {"prompt": [USER], "completion": [says("bad")], "label": False},
    {"messages": [USER, says("fair")], "label": 1},
    {"instruction": "q2", "response": "poor", "kto_tag": False},
]


def test_unpaired_responses_are_judged_over_all_and_within_prompts(tmp_path: Path) -> None:
    dataset = load([write(tmp_path / "rows.jsonl", KTO)])
    assert dataset.kind == "unpaired"
    assert dataset.reason == "its rows have `completion` and `label`"
    scores: dict[str, float | None] = {"good": 2, "bad": 1, "fair": 0, "poor": -1}
    judged = outcome_of(dataset, by_text(scores))
    expected = share_in_order([True, False, True, False], [2, 1, 0, -1])
    assert values(judged) == {
        "auc_pooled": expected,
        "auc_within": share_in_order([True, False, True], [2, 1, 0]),
    }
    assert judged.judgement.counts["prompts with good and bad"] == 1
    with pytest.raises(EvalError, match="line 1: `label` must be true or false, got 3"):
        load([write(tmp_path / "rows.jsonl", [KTO[0] | {"label": 3}])], kind="unpaired")


TABLE_ROWS: list[list[dict[str, Any]]] = [
    [{"prompt": 'q, or\n"q"', "chosen": "yes", "rejected": "no"}],
    [PAIRS["Chatbot Arena"][0]],
    [GROUPS["labels"], GROUPS["labels"]],
    [KTO[0], KTO[0] | {"label": False}],
    [{"problem": "q", "steps": ["a", "b"], "label": 1}],
    [PAIRS["HelpSteer2"][0], TIES[0]],
    [{"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}],
    [{"prompt": "q", "chosen": "42", "rejected": "[41]"}],
]


@pytest.mark.parametrize("rows", TABLE_ROWS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz"])
def test_a_table_of_text_is_read_as_the_same_rows_in_json(
    tmp_path: Path, rows: list[dict[str, Any]], suffix: str
) -> None:
    import csv
    import gzip
    import io

    stream = io.StringIO(newline="")
    names = list(rows[0])
    writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerow(names)
    for row in rows:
        cells = [row[name] for name in names]
        writer.writerow([c if isinstance(c, str) else json.dumps(c) for c in cells])
    content = stream.getvalue().encode()
    (tmp_path / f"rows{suffix}").write_bytes(
        gzip.compress(content) if suffix.endswith("gz") else content
    )
    table, other = load([tmp_path / f"rows{suffix}"]), load([write(tmp_path / "rows.jsonl", rows)])
    assert (table.kind, table.num_left_out) == (other.kind, other.num_left_out)
    assert [c.item for c in table.candidates] == [c.item for c in other.candidates]
    assert [c.is_right for c in table.candidates] == [c.is_right for c in other.candidates]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,chosen\nq,a,b\n", "data.csv row 1: has 3 cells, the line of names has 2"),
        ("prompt,prompt\nq,q\n", "data.csv: two columns are named `prompt`"),
        ("prompt,chosen,rejected\n", "data.csv: holds no rows"),
        ("", "data.csv: holds no rows"),
        ('prompt,chosen,rejected\nq,"a,b\n', "data.csv: not readable as a table"),
        (
            "prompt,responses,labels\nq,\"['a', 'b']\",\"[0, 1]\"\n",
            "data.csv row 1: `responses` is a list as Python prints it",
        ),
        (
            "chosen,rejected\n\"[{'role': 'user', 'content': 'q'}]\",b\n",
            "data.csv row 1: `chosen` is a list as Python prints it",
        ),
        ("prompt,chosen,rejected\nq,,b\n", "data.csv row 1: `chosen` must be a string or mess"),
    ],
)
def test_what_is_no_table_is_said(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(EvalError) as caught:
        load([tmp_path / "data.csv"])
    assert message in str(caught.value)


def test_cells_may_be_long_and_end_in_semicolons(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"prompt;chosen;rejected\nq;{'a' * 200_000};no, b\n")
    (first, second) = load([tmp_path / "data.csv"]).candidates
    assert (len(first.item["response"]), second.item["response"]) == (200_000, "no, b")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\x00"])
def test_a_format_that_is_not_read_is_named(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "data.jsonl.x").write_bytes(start + b"\x00" * 9)
    with pytest.raises(EvalError, match=r"data\.jsonl\.x: is .* is not read: unpack it, or write"):
        load([tmp_path / "data.jsonl.x"])
