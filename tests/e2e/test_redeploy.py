"""A redeploy on a real Ray leaves the one replica of a deployment in rotation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny

RUN = Path(__file__).with_name("redeploy_run.py")
LOAD_S = 6.0
# While a replica is out of rotation nothing is answered: so it was for all of a load.
LONGEST_GAP_S = LOAD_S / 3


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("redeploy")
    tiny.save(folder / "lm")
    tiny.save(folder / "shape", "qwen3")
    tiny.save(folder / "weights", "qwen3", seed=7)
    modules = os.pathsep.join(
        [str(Path(tiny.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment = {**os.environ, "PYTHONPATH": modules, "LOAD_S": str(LOAD_S)}
    subprocess.run([sys.executable, str(RUN), str(folder)], env=environment, check=True)
    return json.loads((folder / "outcome.json").read_text())


@pytest.mark.parametrize("checkpoint", ["shape", "weights", "absent"])
def test_callers_are_answered_all_the_time(outcome: Any, checkpoint: str) -> None:
    redeploy = outcome[checkpoint]
    assert redeploy["statuses"] == [200]
    assert redeploy["longest_gap_s"] < LONGEST_GAP_S


@pytest.mark.parametrize(("checkpoint", "version"), [("shape", 2), ("weights", 3)])
def test_replies_are_of_the_version_before_and_then_of_the_new_one(
    outcome: Any, checkpoint: str, version: int
) -> None:
    versions = outcome[checkpoint]["versions"]
    assert versions[0] == version - 1
    assert versions[-1] == version
    assert set(versions) == {version - 1, version}


def test_another_architecture_takes_a_load_and_other_weights_take_none(outcome: Any) -> None:
    assert outcome["shape"]["seconds"] > LOAD_S
    assert "version 2 is loaded beside version 1" in outcome["log"]
    assert "version 3 is loaded beside" not in outcome["log"]


def test_a_redeploy_that_fails_keeps_what_serves_and_names_the_cause(outcome: Any) -> None:
    redeploy = outcome["absent"]
    assert set(redeploy["versions"]) == {3}
    state = redeploy["state"]
    assert state["declared"]["version"] == 4
    (replica,) = state["replicas"]
    assert replica["version"] == 3
    assert "absent" in replica["error"]["message"]
    assert outcome["log"].count("version 3 stays: ") == 1
