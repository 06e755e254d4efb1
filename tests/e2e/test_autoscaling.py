"""Replicas follow the load on a real Ray: from one to two and back, and nothing is lost meanwhile.
`make scale` shows the same at length, with figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny

RUN = Path(__file__).with_name("autoscaling_run.py")
# A quiet machine takes 40 s for all of it.
TIMEOUT_S = 480.0


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("autoscaling") / "outcome.json"
    modules = os.pathsep.join(
        [str(Path(tiny.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {**os.environ, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RUN), str(file)]
    subprocess.run(command, env=environment, timeout=TIMEOUT_S, check=True)
    return json.loads(file.read_text())


def test_a_backlog_makes_two_replicas_of_one_and_both_answer(outcome: Any) -> None:
    grown = outcome["grown"]
    assert (grown["desired"], grown["running"]) == (2, 2)
    assert (grown["answered"], grown["computed"]) == (2, 2)


def test_the_idle_replica_borrows_what_waits_at_the_other(outcome: Any) -> None:
    assert outcome["grown"]["lent"] > 0


def test_a_quiet_time_makes_one_replica_of_two(outcome: Any) -> None:
    small = outcome["small"]
    assert (small["desired"], small["running"], small["computed"]) == (1, 1, 1)


@pytest.mark.parametrize("load", ["busy", "light"])
def test_every_request_is_answered_with_its_own_rewards_while_replicas_come_and_go(
    outcome: Any, load: str
) -> None:
    callers = outcome[load]
    assert set(callers["statuses"]) == {"200"}
    assert sum(callers["statuses"].values()) > 10
    assert callers["num_wrong"] == 0
