"""RewardBench 2: credit of the best response, ties against the benchmark's own formula, subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.eval_data import by_text, outcome_of, titles, values, write
from tokenreward.eval import Dataset, load
from tokenreward.eval.kinds.reward_bench_2 import SUBSETS


def row(name: str, chosen: list[float], rejected: list[float], **fields: Any) -> dict[str, Any]:
    """A row whose responses are named for their scores."""
    sides = {"chosen": chosen, "rejected": rejected}
    texts = {
        side: [f"{name} {side} {place}: {score}" for place, score in enumerate(scores)]
        for side, scores in sides.items()
    }
    return {"id": name, "prompt": f"question {name}", "num_correct": len(chosen), **texts, **fields}


def outcome(folder: Path, rows: list[dict[str, Any]]) -> Any:
    dataset: Dataset = load([write(folder / "rows.jsonl", rows)])
    assert dataset.kind == "reward-bench-2"
    texts = [candidate.item["response"] for candidate in dataset.candidates]
    return outcome_of(dataset, by_text({text: float(text.split(": ")[1]) for text in texts}))


@pytest.mark.parametrize(
    ("chosen", "rejected", "credit"),
    [
        ([2], [1, 0, -1], 1),
        ([2], [3, 0, -1], 0),
        ([2], [2, 0, -1], 1 / 2),
        ([2], [2, 2, 2], 1 / 4),
        ([2, 3], [1, 0], 1),
        ([1, 3], [1, 0], 0),
    ],
)
def test_credit_by_hand(
    tmp_path: Path, chosen: list[float], rejected: list[float], credit: float
) -> None:
    judged = outcome(tmp_path, [row("a", chosen, rejected, subset="Focus")])
    assert values(judged) == {"macro": pytest.approx(credit), "micro": pytest.approx(credit)}
    assert judged.judgement.counts["ties"] == (0 < credit < 1)


def benchmarks_ties(pairs: list[tuple[Any, Any, Any, Any]]) -> float:
    """The score of (ref chosen, ref rejected, tied chosen, tied rejected), as the benchmark adds it
    up: shares and means over all prompts."""
    ref_gap = np.array([min(a) - max(b) for a, b, _, _ in pairs])
    gap = np.array([min(c) - max(d) for _, _, c, d in pairs])
    spread = np.array([max(c) - min(c) for _, _, c, _ in pairs])
    least = np.minimum(ref_gap, gap)
    return float(
        0.3 * (gap > 0).mean()
        + 0.3 * (ref_gap > 0).mean()
        + 0.2 * (gap > spread).mean()
        + 0.2 * (least > spread).mean()
        + 0.01 * np.tanh(least / spread - 1).mean()
    )


def test_ties_are_the_benchmarks_own_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs, rows = [], []
    for n in range(20):
        scores = [
            rng.normal(1.5 * (part % 2 == 0), 1, size).tolist()
            for part, size in enumerate((1, 4, 3, 6))
        ]
        pairs.append(tuple(scores))
        rows.append(row(f"ref:{n}", scores[0], scores[1], subset="Ties"))
        rows.append(row(f"tied:{n}", scores[2], scores[3], subset="ties"))
    judged = outcome(tmp_path, rows)
    expected = benchmarks_ties(pairs)
    assert 0.2 < expected < 0.8
    assert judged.judgement.groups["Ties"].value == pytest.approx(expected, abs=1e-12)
    assert values(judged)["macro"] == pytest.approx(expected, abs=1e-12)


def test_ties_without_a_reference_are_the_share_of_right_rows_and_a_note_says_so(
    tmp_path: Path,
) -> None:
    rows = [
        row("tied:1", [1, 2], [0, 0.5], subset="Ties"),
        row("tied:2", [1, 2], [0, 1.5], subset="Ties"),
    ]
    judged = outcome(tmp_path, rows)
    assert values(judged)["macro"] == 0.5
    assert any("no `ref:` and `tied:` rows" in note for note in judged.judgement.notes)


def test_equal_chosen_scores_are_the_limit_of_a_small_spread(tmp_path: Path) -> None:
    rows = [
        row("ref:1", [2], [0], subset="Ties"),
        row("tied:1", [2, 2], [1, 0], subset="Ties"),
    ]
    assert values(outcome(tmp_path, rows))["macro"] == pytest.approx(1.01)


def test_average_is_named_only_if_all_six_subsets_are_there(tmp_path: Path) -> None:
    rows = [row(f"a{n}", [n], [2, 0, 0], subset=name) for n, name in enumerate(SUBSETS[:5])]
    judged = outcome(tmp_path, rows)
    assert titles(judged)[0] == f"macro over {', '.join(SUBSETS[:5])}"
    assert values(judged)["macro"] == pytest.approx((0 + 0 + 0.5 + 1 + 1) / 5)
    rows += [row("ref:1", [2], [0], subset="Ties"), row("tied:1", [2, 2], [1, 0], subset="Ties")]
    assert titles(outcome(tmp_path, rows))[0] == "RewardBench 2 average (macro)"


def test_prompt_without_all_its_answers_counts_nowhere(tmp_path: Path) -> None:
    rows = [row("a", [1], [0], subset="Math"), row("b", [0], [1], subset="Math")]
    dataset = load([write(tmp_path / "rows.jsonl", rows)])
    texts = [candidate.item["response"] for candidate in dataset.candidates]
    scores = {text: None if text.startswith("b chosen") else float(text[-1]) for text in texts}
    judged = outcome_of(dataset, by_text(scores))
    assert values(judged)["micro"] == 1
    assert judged.judgement.counts["failed"] == 1


def test_a_file_that_is_given_twice_counts_twice(tmp_path: Path) -> None:
    rows = [
        row("a", [1], [0, 0], subset="Math"),
        row("b", [0], [1, 0], subset="Math"),
        row("ref:1", [2], [0], subset="Ties"),
        row("tied:1", [2, 2], [1, 0], subset="Ties"),
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    texts = [candidate.item["response"] for candidate in load([file]).candidates]
    answer = by_text({text: float(text.split()[-1]) for text in texts})
    once, twice = outcome_of(load([file]), answer), outcome_of(load([file, file]), answer)
    assert values(once) == values(twice)
    assert twice.judgement.counts["judged"] == 2 * once.judgement.counts["judged"] == 8
    assert twice.judgement.groups["Math"].num == 4
    assert twice.judgement.groups["Ties"].num == 2
