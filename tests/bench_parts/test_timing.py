"""Competitors take turns, the warm-up is not counted, and a peak is what the call itself took."""

from __future__ import annotations

import time

import numpy as np

from bench.timing import cpu_seconds, in_turns, peak_bytes


def test_sides_take_turns_and_the_first_rounds_are_not_counted() -> None:
    calls: list[str] = []

    def side(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2, num_unmeasured=1)
    assert "".join(calls) == "ababab"
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_cpu_seconds_counts_work_and_not_waiting() -> None:
    def work() -> None:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass

    taken = cpu_seconds({"work": work, "wait": lambda: time.sleep(0.02)}, rounds=3)
    assert taken["work"] >= 0.02
    assert taken["wait"] < 0.01


def test_the_peak_is_what_the_call_took_and_gave_back() -> None:
    size = 64 * 2**20
    assert peak_bytes(lambda: np.ones(size, dtype=np.uint8).sum()) >= 0.9 * size
    assert peak_bytes(lambda: None) < 0.1 * size
