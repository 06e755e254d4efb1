"""Flagged units: who is flagged, who counts, areas against the count of couples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.eval_data import TIMING, outcome_of, per_character, share_in_order, values, write
from tokenreward.eval import Candidate, CandidateAnswer, load
from tokenreward.eval.kinds.flags import judge_flags, unit_flags


def figures_of(
    folder: Path, rows: list[dict[str, Any]], rewards: dict[str, list[float]]
) -> dict[str, float | None]:
    dataset = load([write(folder / "tokens.jsonl", rows)])
    assert all(
        candidate.needs_units and not candidate.needs_score for candidate in dataset.candidates
    )
    return values(
        outcome_of(
            dataset, lambda c: per_character(rewards[c.item["response"]], c.item["response"])
        )
    )


@pytest.mark.parametrize(
    "labels",
    [{"flagged": [[0, 2]]}, {"flags": [1, 1, 0, 0]}, {"flags": [True, True, False, False]}],
)
def test_ranges_and_character_flags_say_the_same(tmp_path: Path, labels: dict[str, Any]) -> None:
    figures = figures_of(
        tmp_path, [{"prompt": "p", "response": "abcd", **labels}], {"abcd": [-1, 0.5, 0, 1, -50]}
    )
    # -1 is below both; 0.5 is below 1 only. End-of-turn, the lowest of all, is left out.
    assert figures == {"token_auc": 0.75, "token_auc_micro": 0.75}


def test_mean_is_over_responses_and_micro_over_all_units(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": "ab", "flagged": [[0, 1]]},
        {"prompt": "p", "response": "cdef", "flagged": [[0, 1]]},
        {"prompt": "p", "response": "gh", "flagged": []},
    ]
    rewards = {"ab": [5, 6, 0], "cdef": [1, 0, 2, 3, 0], "gh": [0, 0, 0]}
    figures = figures_of(tmp_path, rows, rewards)
    assert figures["token_auc"] == pytest.approx((1 + 2 / 3) / 2)
    # Flagged 5 and 1 against 6, 0, 2, 3, 0, 0: 5 is below 6; 1 below 6, 2, 3.
    assert figures["token_auc_micro"] == pytest.approx(4 / 12)


def test_token_that_straddles_a_flagged_range_is_flagged() -> None:
    flags = np.array([0, 0, 1, 0, 0, 0], dtype=bool)
    response = Candidate({"prompt": "p", "response": "abcdef"}, "row", flags=flags)
    flagged, counts = unit_flags(response, np.array([[0, 2], [2, 4], [4, 6], [6, 6]]))
    assert flagged.tolist() == [False, True, False, False]
    assert counts.tolist() == [True, True, True, False]


def test_spans_of_the_file_are_the_units_and_all_of_them_count(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "response": "It is 4.",
        "spans": [[0, 2], [2, 5], [5, 8], [8, 8]],
        "flags": [0, 0, 1, 1],
    }
    dataset = load([write(tmp_path / "tokens.jsonl", [row])])
    assert dataset.candidates[0].item["spans"] == row["spans"]
    characters = dataset.candidates[0].character_flags
    assert characters is not None
    assert characters.tolist() == [False] * 5 + [True] * 3
    rewards = np.array([0, 2, 1, -1], dtype=np.float32)
    answer = CandidateAnswer(None, rewards, np.array(row["spans"]), timing=TIMING)
    figures = values(outcome_of(dataset, lambda candidate: answer))
    assert figures["token_auc"] == pytest.approx(3 / 4)


def test_interval_of_the_micro_area_resamples_responses_not_tokens(tmp_path: Path) -> None:
    """One response in perfect order and one in no order at all: as clusters they are far apart."""
    rows = [
        {"prompt": "p", "response": "ab" * 50, "flags": [1, 0] * 50},
        {"prompt": "p", "response": "cd" * 50, "flags": [1, 0] * 50},
    ]
    rewards = {"ab" * 50: [-1.0, 1.0] * 50 + [0.0], "cd" * 50: [0.0] * 101}
    dataset = load([write(tmp_path / "tokens.jsonl", rows)])
    row = outcome_of(
        dataset, lambda c: per_character(rewards[c.item["response"]], c.item["response"])
    )
    _, micro = row.judgement.columns["token_auc_micro"]
    assert micro is not None
    assert (micro.low, micro.high) == (0.5, 1.0)
    counts = {"responses": 2, "judged": 2, "failed": 0, "of one kind only": 0}
    assert row.judgement.counts == counts


RESPONSES = st.lists(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


@given(RESPONSES)
def test_areas_are_the_share_of_couples_in_order(responses: list[list[tuple[bool, int]]]) -> None:
    candidates, answers, areas, pooled = [], [], {}, []
    for index, response in enumerate(responses):
        ends = np.arange(len(response) + 1)
        rewards = np.array([reward for _, reward in response], dtype=np.float32)
        flags = np.array([flag for flag, _ in response])
        item = {"prompt": "p", "response": "a" * len(response)}
        candidates.append(Candidate(item, f"row {index}, `response`", flags=flags))
        answers.append(CandidateAnswer(None, rewards, np.stack([ends[:-1], ends[1:]], 1)))
        pooled += response
        areas[f"row {index}"] = share_in_order(
            [flag for flag, _ in response], [-reward for _, reward in response]
        )
    tokens = judge_flags([(row, index) for index, row in enumerate(areas)], candidates, answers)
    mean, micro = (estimate for _, estimate in tokens.columns.values())
    # Six responses at most: each that has an area is one of the ten worst.
    examples = {example.where: -example.margin for example in tokens.examples["flagged tokens"]}
    assert [examples.get(row) for row in areas] == [
        None if area is None else pytest.approx(area) for area in areas.values()
    ]
    assert tokens.counts == {"of one kind only": list(areas.values()).count(None)}
    expected = share_in_order([flag for flag, _ in pooled], [-reward for _, reward in pooled])
    assert (micro and micro.value) == (None if expected is None else pytest.approx(expected))
    defined = [area for area in areas.values() if area is not None]
    assert (mean and mean.value) == (pytest.approx(np.mean(defined)) if defined else None)
