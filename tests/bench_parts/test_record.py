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
def test_the_suites_that_are_named_run_and_a_short_one_is_the_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench.measure(bench.asked(["fine"])) == 0
    assert capsys.readouterr().out.splitlines()[0] == GOOD.line()
    assert bench.measure(bench.asked(["fine", "short", "--mode", "laptop"])) == 1
    assert capsys.readouterr().out.splitlines()[2].startswith("laptop, 3 rounds, 3 groups")


@pytest.mark.usefixtures("suites")
def test_rounds_mode_and_groups_reach_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    bench.measure(
        bench.asked(["short", "--rounds", "7", "--mode", "cluster", "--isolated", "--groups", "2"])
    )
    assert capsys.readouterr().out.startswith("cluster, 7 rounds, 2 groups")


@pytest.mark.usefixtures("suites")
def test_cluster_mode_is_asked_of_a_bench_in_a_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str]) -> int:
        """The same bench in this process: what it does in there is what it was asked for."""
        return bench.measure(bench.asked(argv[3:]))

    monkeypatch.setattr(bench.namespace, "run", run)
    file = tmp_path / "bench.json"
    assert bench.measure(bench.asked(["fine", "short", "--groups", "2", "--json", str(file)])) == 1
    lines = capsys.readouterr().out.splitlines()
    short = [line.split(" groups")[0] for line in lines if "SHORT" in line]
    assert short == ["laptop, 3 rounds, 2", "cluster, 3 rounds, 2"]
    assert list(json.loads(file.read_text())["suites"]) == [
        "fine",
        "short, laptop mode",
        "short, cluster mode",
    ]


@pytest.mark.usefixtures("suites")
def test_where_no_namespace_is_permitted_cluster_mode_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert bench.measure(bench.asked(["short", "--mode", "cluster"])) == 0
    assert "skipped: no namespace here: there is no command `unshare`" in capsys.readouterr().out


@pytest.mark.usefixtures("suites")
def test_what_was_found_is_kept_with_its_plot(tmp_path: Path) -> None:
    bench.measure(bench.asked(["fine", "--json", str(tmp_path / "bench.json")]))
    assert json.loads((tmp_path / "bench.json").read_text())["suites"]["fine"]["figures"] == [
        GOOD.as_json()
    ]
    assert (tmp_path / "throughput.svg").read_text().startswith("<svg")
    assert not (tmp_path / "memory.svg").exists()


def test_a_suite_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.asked(["no-such"])
    assert refused.value.code == 2
    assert "no such suite: no-such" in capsys.readouterr().err
