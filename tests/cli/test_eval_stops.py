"""`tokenreward eval` that does not come to its end: what is said, what is kept, and how it goes
on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.eval_data import write
from fakes.eval_service import Known, known
from tokenreward.cli import main

CACHE = Path("tokenreward-eval-cache.jsonl")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Known]:
    """The cache is written where the command runs."""
    monkeypatch.chdir(tmp_path)
    with known() as running:
        yield running


def pairs(num: int) -> Path:
    """The chosen response has one digit, the rejected one none."""
    return write(
        Path("pairs.jsonl"),
        [{"prompt": f"q{n}", "chosen": f"c{n}: 1", "rejected": "r"} for n in range(num)],
    )


def stopped(service: Known, how: signal.Signals, *more: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a run that gets a signal after five requests."""
    service.delay_s = 0.15
    command = [
        sys.executable,
        "-m",
        "tokenreward.cli",
        "eval",
        str(pairs(640)),
        "--url",
        service.url,
    ]
    command += ["--scorer", "known", "--concurrency", "2", *more]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        deadline = time.monotonic() + 30
        while len(service.responses) < 5 * 64 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_run_that_is_stopped_goes_on_where_it_stopped(service: Known, how: signal.Signals) -> None:
    code, out, err = stopped(service, how)
    assert code == (130 if how is signal.SIGINT else -how)
    assert out == ""
    assert "Traceback" not in err
    kept = CACHE.read_text().count("\n")
    assert 64 <= kept < 1280
    with CACHE.open("a") as cache:
        cache.write('{"key":"half a li')
    with known() as again:  # the first may still hear of requests of the process that was stopped
        command = ["eval", "pairs.jsonl", "--url", again.url, "--scorer", "known"]
        assert main([*command, "--json", "out.json"]) == 0
        assert len(again.responses) == 1 + 1280 - kept
    figure = json.loads(Path("out.json").read_text())["scorers"][0]["figures"]["accuracy"]
    assert (figure["value"], figure["num"]) == (1.0, 640)


def test_ctrl_c_says_how_many_answers_are_kept_and_where(service: Known) -> None:
    _, _, err = stopped(service, signal.SIGINT)
    *_, bar, last = err.splitlines()
    kept = CACHE.read_text().count("\n")
    assert (
        last
        == f"stopped; {kept} new answers are kept in {CACHE}: the same command goes on from there"
    )
    assert f"] {kept} items" in bar


def test_ctrl_c_without_a_cache_promises_nothing(service: Known) -> None:
    code, _, err = stopped(service, signal.SIGINT, "--no-cache")
    assert code == 130
    assert "kept" not in err
    assert not CACHE.exists()


def test_refusal_in_the_middle_says_what_is_kept_and_then_why(
    service: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    service.script.extend(
        [service.ok, service.ok, service.says(422, "unknown_option", retryable=False)]
    )
    asked = [
        "eval",
        str(pairs(640)),
        "--url",
        service.url,
        "--scorer",
        "known",
        "--concurrency",
        "1",
    ]
    assert main(asked) == 1
    *_, kept, why = capsys.readouterr().err.splitlines()
    assert (
        kept == f"stopped; 2 new answers are kept in {CACHE}: the same command goes on from there"
    )
    assert why.startswith("error: unknown_option")
