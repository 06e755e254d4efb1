"""A figure's line says whether it holds, and one that does not hold is the exit code."""

from __future__ import annotations

import pytest

from bench.figure import Figure, Point, Skipped, exit_code

FAST = Figure("trunk / HF", 2.0, 9.0, 4.5, 4.0, "CPU s")


def test_a_line_is_name_ours_rival_unit_ratio_target_and_verdict() -> None:
    assert FAST.line().split() == ["trunk", "/", "HF", "2", "9", "CPU", "s", "4.5", ">=4", "ok"]


def test_a_ratio_below_its_target_is_short() -> None:
    figure = Figure("trunk / HF", 2.0, 7.0, 3.5, 4.0, "CPU s", note="2 rounds")
    assert not figure.ok
    assert figure.line().endswith("SHORT  2 rounds")


@pytest.mark.parametrize(("ratio", "ok"), [(1.06, True), (1.07, True), (1.08, False)])
def test_a_ceiling_turns_the_verdict_round(ratio: float, ok: bool) -> None:
    figure = Figure("cost", 1.0, 1.0, ratio, 1.07, "CPU s", ceiling=True)
    assert figure.ok is ok
    assert "<=1.07" in figure.line()


def test_a_ratio_that_is_not_a_number_is_short() -> None:
    assert not Figure("trunk", 0.0, 0.0, float("nan"), 0.0, "CPU s").ok
    assert not Figure("cost", 0.0, 0.0, float("nan"), 1.0, "CPU s", ceiling=True).ok


def test_one_short_figure_makes_the_exit_code_1() -> None:
    short = Figure("trunk / HF", 2.0, 7.0, 3.5, 4.0, "CPU s")
    assert exit_code([FAST, Point("throughput", "ours", 256, 1000.0)]) == 0
    assert exit_code([FAST, short, FAST]) == 1


def test_a_skipped_rival_is_told_with_its_reason_and_is_not_short() -> None:
    skipped = Skipped("service / vLLM", "pip was not done")
    assert skipped.line().split(maxsplit=3) == ["service", "/", "vLLM", "skipped: pip was not done"]
    assert exit_code([skipped]) == 0
