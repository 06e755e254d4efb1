"""The record keeps what other suites found, and what a command line asked for is what runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench import record
from bench.figure import Figure, Point, Result, Skipped

GOOD = Figure("trunk / HF", 2.0, 9.0, 4.5, 4.0, "CPU s")
SHORT = Figure("head / HF", 2.0, 2.0, 1.0, 4.0, "CPU s")
POINT = Point("throughput", "ours", 256, 2000.0)


def test_a_suite_replaces_its_own_results_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    record.keep(file, "lengths", [GOOD, POINT], rounds=5)
    record.keep(file, "vllm", [Skipped("service / vLLM", "not here")], rounds=3)
    record.keep(file, "lengths", [SHORT, POINT], rounds=2)
    suites = json.loads(file.read_text())["suites"]
    assert suites["lengths"]["figures"] == [{**SHORT.as_json(), "ok": False}]
    assert suites["lengths"]["rounds"] == 2
    assert suites["vllm"]["figures"] == [{"name": "service / vLLM", "skipped": "not here"}]
    assert record.points(file) == [POINT]


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that take no time."""

    def fine(*, rounds: int) -> Iterator[Result]:
        yield from [GOOD, POINT]

    def short(*, rounds: int, mode: str, num_groups: int = 3) -> Iterator[Result]:
        yield Figure(f"{mode}, {rounds} rounds, {num_groups} groups", 1.0, 1.0, 1.0, 2.0, "s")

    for name, suite in {"fine": fine, "short": short}.items():
        monkeypatch.setitem(bench.SUITES, name, suite)
        monkeypatch.setitem(bench.ROUNDS, name, 3)
    monkeypatch.setitem(bench.SERVICE, "short", short)


@pytest.mark.usefixtures("suites")
def test_the_suites_that_are_named_run_and_a_short_one_is_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.measure(bench.asked(["fine"])) == 0
    assert capsys.readouterr().out.splitlines()[0] == GOOD.line()
    assert bench.measure(bench.asked(["fine", "short"])) == 1
    assert capsys.readouterr().out.splitlines()[2].startswith("laptop, 3 rounds, 3 groups")


@pytest.mark.usefixtures("suites")
def test_rounds_mode_and_groups_reach_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    bench.measure(bench.asked(["short", "--rounds", "7", "--mode", "cluster", "--groups", "2"]))
    assert capsys.readouterr().out.startswith("cluster, 7 rounds, 2 groups")


@pytest.mark.usefixtures("suites")
def test_what_was_found_is_kept_with_its_plot(tmp_path: Path) -> None:
    bench.measure(bench.asked(["fine", "--json", str(tmp_path / "bench.json")]))
    assert json.loads((tmp_path / "bench.json").read_text())["suites"]["fine"]["figures"] == [GOOD.as_json()]
    assert (tmp_path / "throughput.svg").read_text().startswith("<svg")
    assert not (tmp_path / "memory.svg").exists()


def test_a_suite_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.asked(["no-such"])
    assert refused.value.code == 2
    assert "no such suite: no-such" in capsys.readouterr().err
