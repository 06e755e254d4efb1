"""What the run on a real Ray is judged by, with outcomes made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from scale import __main__ as scale
from scale import burst
from tokenreward.config import parse_settings
from tokenreward.deployment.instance import Instance

GOOD: dict[str, Any] = {
    "makespan_s": 24.0,
    "burst": {"statuses": {"200": 1000}, "num_lost": 0, "num_wrong": 0},
    "light": {"statuses": {"200": 50}, "num_lost": 0, "num_wrong": 0},
    "changes": [[-5.0, 1, 1], [3.0, 4, 1], [14.0, 4, 4], [60.0, 1, 4], [61.0, 1, 1]],
    "counts_in_metrics": [["desired", "1.0"], ["running", "1.0"]],
    "traced": [["Gateway_Gateway", 200, True], ["slow_Replica", 200, True]],
}


def test_the_ideal_is_the_work_shared_by_the_replicas_as_they_ran() -> None:
    assert scale.ideal_s(GOOD) == pytest.approx(14 + 36 / 4)  # 50 s of one replica's work
    assert scale.ideal_s({"changes": [[-1.0, 1, 1]]}) == pytest.approx(50)
    assert scale.decision_s(GOOD) == 3.0


def test_a_good_run_has_no_problem() -> None:
    assert scale.judge(GOOD, "python") == []


@pytest.mark.parametrize(
    "change",
    [
        {"makespan_s": 40.0},
        {"changes": [[-5.0, 1, 1], [4.5, 4, 1], [14.0, 4, 4], [61.0, 1, 1]]},
        {"changes": GOOD["changes"][:-1]},
        {"burst": {"statuses": {"200": 1000, "503": 1}, "num_lost": 0, "num_wrong": 0}},
        {"light": {"statuses": {"200": 50}, "num_lost": 1, "num_wrong": 0}},
        {"light": {"statuses": {"200": 50}, "num_lost": 0, "num_wrong": 1}},
        {"counts_in_metrics": []},
        {"traced": []},
    ],
)
def test_a_run_with_a_fault_has_one_problem(change: dict[str, Any]) -> None:
    assert len(scale.judge({**GOOD, **change}, "python")) == 1


def test_the_run_is_made_of_what_there_is() -> None:
    (deployment,) = parse_settings(burst.SETTINGS).deployments
    assert deployment.max_replicas == burst.MOST
    for method in ("start", "stop", "logs"):
        assert hasattr(Instance, method)
