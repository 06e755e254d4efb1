"""Pairs: accuracy per subset, micro, macro; ties and failures are neither wins nor losses; flagged
characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fakes.eval_data import FAILED, by_text, outcome_of, per_character, values, write
from tokenreward.eval import Candidate, CandidateAnswer, Dataset, load

# RewardBench's columns; hand-computed: alpha 2 of 3 right, beta 1 of 1, gamma 0 of 1 (a tie).
ROWS = [
    {
        "id": n,
        "prompt": "q",
        "chosen": f"c{n}",
        "chosen_model": "x",
        "rejected": f"r{n}",
        "rejected_model": "y",
    }
    | {"subset": subset}
    for n, subset in enumerate(["alpha", "alpha", "beta", "alpha", "gamma"])
]
SCORES: dict[str, float | None] = {
    "c0": 1,
    "r0": 0,
    "c1": -1,
    "r1": -2,
    "c2": 5,
    "r2": 4,
    "c3": 0,
    "r3": 3,
}
SCORES |= {"c4": 7, "r4": 7}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load([write(tmp_path / "filtered.jsonl", ROWS)])


def test_accuracy_by_hand(dataset: Dataset) -> None:
    row = outcome_of(dataset, by_text(SCORES))
    assert values(row) == {"accuracy": 3 / 5, "accuracy_macro": pytest.approx((2 / 3 + 1 + 0) / 3)}
    groups = {
        name: figure and (figure.value, figure.num) for name, figure in row.judgement.groups.items()
    }
    assert groups == {"alpha": (pytest.approx(2 / 3), 3), "beta": (1, 1), "gamma": (0, 1)}
    assert row.judgement.counts == {"pairs": 5, "judged": 5, "failed": 0, "wrong": 1, "ties": 1}


def test_failed_answer_takes_its_pair_out_and_is_listed(dataset: Dataset) -> None:
    row = outcome_of(dataset, by_text(SCORES | {"r3": None, "c4": None}))
    assert values(row) == {"accuracy": 1.0, "accuracy_macro": None}
    assert row.judgement.counts == {"pairs": 5, "judged": 3, "failed": 2, "wrong": 0, "ties": 0}
    assert [where.split("/")[-1] for where, _, _ in row.failures] == [
        "filtered.jsonl line 4, `rejected`",
        "filtered.jsonl line 5, `chosen`",
    ]
    assert row.num_items == 10


def test_all_failed_is_no_figure(dataset: Dataset) -> None:
    row = outcome_of(dataset, lambda candidate: FAILED)
    assert values(row) == {"accuracy": None, "accuracy_macro": None}
    assert row.latency is None


def test_worst_pair_comes_first(dataset: Dataset) -> None:
    row = outcome_of(dataset, by_text(SCORES))
    (examples,) = row.judgement.examples.values()
    assert [example.margin for example in examples] == [3, 0, -1, -1, -1]
    assert examples[0].fault == "rejected minus chosen +3"


def test_without_subsets_there_is_no_macro(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    row = outcome_of(load([write(tmp_path / "p.jsonl", rows)]), by_text({"a": 1, "b": 0}))
    assert values(row) == {"accuracy": 1.0}
    assert row.judgement.groups == {}


def test_pairs_without_a_subset_are_one_group_however_they_lack_it(tmp_path: Path) -> None:
    subsets = [{"subset": ""}, {}, {"subset": None}, {"subset": "no subset"}, {"subset": "x"}]
    rows = [
        {"prompt": "q", "chosen": f"c{n}", "rejected": "b"} | subset
        for n, subset in enumerate(subsets)
    ]
    scores = by_text({"c0": -1, "c1": -1, "c2": 1, "c3": 1, "c4": 1, "b": 0})
    row = outcome_of(load([write(tmp_path / "p.jsonl", rows)]), scores)
    groups = {name: each.value for name, each in row.judgement.groups.items() if each}
    assert groups == {"no subset": 0.5, "x": 1.0}
    assert values(row)["accuracy_macro"] == 0.75


def test_string_prompt_is_a_user_message_unless_raw_and_messages_stay(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    file = write(
        tmp_path / "p.jsonl",
        [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("q", messages)],
    )
    as_user, raw = load([file]), load([file], prompt_as="raw")
    assert [c.item["prompt"] for c in as_user.candidates[::2]] == [
        [{"role": "user", "content": "q"}],
        messages,
    ]
    assert [c.item["prompt"] for c in raw.candidates[::2]] == ["q", messages]


def test_flagged_characters_give_token_areas_of_rejected_responses(tmp_path: Path) -> None:
    """abcd with b wrong: area 2/3 by hand (b is below c and d, above a). xy all wrong: no area of
    its own."""
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "abcd", "rejected_flagged": [[1, 2]]},
        {"prompt": "q", "chosen": "good", "rejected": "xy", "rejected_flagged": [[0, 2]]},
        {"prompt": "q", "chosen": "good", "rejected": "none"},
    ]
    rewards = {"abcd": [-2, -1, 0, 1, -99], "xy": [-3, 3, -99]}

    def answer(candidate: Candidate) -> CandidateAnswer:
        text = candidate.item["response"]
        assert candidate.needs_units == (text in rewards)
        return per_character(rewards[text], text) if text in rewards else CandidateAnswer(0.0)

    dataset = load([write(tmp_path / "p.jsonl", rows)])
    row = outcome_of(dataset, answer)
    figures = values(row)
    assert figures["token_auc"] == pytest.approx(2 / 3)
    # Flagged -1, -3, 3 against -2, 0, 1: -1 is below 0 and 1, -3 below all, 3 below none.
    assert figures["token_auc_micro"] == pytest.approx(5 / 9)
    (example,) = row.judgement.examples["flagged tokens"]
    assert example.fault == "token AUC 0.667"
    (index,) = example.responses.values()
    flags = dataset.candidates[index].character_flags
    assert flags is not None
    assert np.flatnonzero(flags).tolist() == [1]


def test_token_areas_of_a_pair_do_not_need_the_chosen_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": "long", "rejected": "ab", "rejected_flagged": [[0, 1]]}]
    row = outcome_of(
        load([write(tmp_path / "p.jsonl", rows)]),
        lambda c: per_character([-1, 0, 0], "ab") if c.item["response"] == "ab" else FAILED,
    )
    assert values(row) == {"accuracy": None, "token_auc": 1.0, "token_auc_micro": 1.0}


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"instruction": "q", "chosen_response": "yes", "rejected_response": "no"},
        {"messages": CHAT, "rejected_response": "no"},
        {"messages": CHAT, "rejected_messages": [CHAT[0], CHAT[1] | {"content": "no"}]},
        {"context": CHAT[:1], "chosen": "yes", "rejected": CHAT[1] | {"content": "no"}},
    ],
)
def test_pair_is_the_same_in_whatever_fields_it_stands(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    dataset = load([write(tmp_path / "pairs.jsonl", [fields])])
    assert dataset.kind == "preference"
    items = [candidate.item for candidate in dataset.candidates]
    assert items == [{"prompt": CHAT[:1], "response": text} for text in ("yes", "no")]


def test_conversations_that_part_before_the_last_turn_keep_their_own_prompts(
    tmp_path: Path,
) -> None:
    other = [CHAT[0] | {"content": "q2"}, CHAT[1] | {"content": "no"}]
    dataset = load([write(tmp_path / "pairs.jsonl", [{"chosen": CHAT, "rejected": other}])])
    prompts = [candidate.item["prompt"][0]["content"] for candidate in dataset.candidates]
    assert prompts == ["q", "q2"]
