"""The tables and plots of the learning run's page are those of its numbers."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from fakes.pages import ROOT
from learning.figure import FIGURES, plot, table

FOLDER = ROOT / "docs" / "learning"
RUNS = json.loads((FOLDER / "runs.json").read_text())


@pytest.mark.parametrize("reward", ["rm", "logprob"])
def test_the_page_shows_the_table_and_the_plot_of_the_runs(reward: str) -> None:
    runs = [run for run in RUNS if run["reward"] == reward]
    assert sorted((run["arm"], run["seed"]) for run in runs) == [
        (arm, seed) for arm in ("dense", "scalar") for seed in range(3)
    ]
    page = (ROOT / "docs" / "learning.md").read_text()
    assert table(runs) in page
    assert f"(learning/{reward}.svg)" in page
    assert plot(runs) == (FOLDER / f"{reward}.svg").read_text()


def test_a_table_has_the_start_and_the_mean_and_the_range_of_each_arm() -> None:
    def run(arm: str, seed: int, last: float) -> dict[str, object]:
        rows = [dict.fromkeys(FIGURES, 0.5) | {"step": 0}, dict.fromkeys(FIGURES, last)]
        return {"arm": arm, "seed": seed, "evaluation": [rows[0], rows[1] | {"step": 9}]}

    runs = [
        run("scalar", 0, 1.0),
        run("scalar", 1, 3.0),
        run("dense", 0, 4.0),
        run("dense", 1, 5.0),
    ]
    head, _, first, *_ = table(runs).splitlines()
    assert head == "| | start | `scalar`, step 9 | `dense`, step 9 |"
    assert first.endswith("| 0.50 | 2.00 (1.00 to 3.00) | 4.50 (4.00 to 5.00) |")
    assert ElementTree.fromstring(plot(runs)).tag.endswith("svg")  # noqa: S314 - our own
