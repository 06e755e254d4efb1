"""The example of a loop without a trainer runs, and learns from what the service answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fakes import published
from fakes.pages import ROOT

published.site()
EXAMPLE = ROOT / "docs" / "examples" / "reinforce.py"


def test_the_loop_runs_against_the_demo_in_40_lines(url: str) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40
    done = subprocess.run([sys.executable, EXAMPLE, url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"step {step}" for step in range(5)]
    rewards = [float(line.split()[3]) for line in lines]
    assert all(-60.0 < reward < 0.0 for reward in rewards)  # log-probs of about 40 tokens


def test_trls_example_runs_and_prints_a_line_per_step(url: str, tmp_path: Path) -> None:
    example = EXAMPLE.with_name("trl_dense.py")
    done = subprocess.run(
        [sys.executable, example, url], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert all("'dense/missing': 0.0" in line for line in lines)
