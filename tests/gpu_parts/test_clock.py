"""The clocks, as far as a machine without a GPU can say: torch's own calls for one are stood in
for."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpu.clock import Cpu, Gpu


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    held = iter([100, 700])
    for name in ("synchronize", "reset_peak_memory_stats", "set_sync_debug_mode", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, name=name: made.append((name, *given)))
    monkeypatch.setattr(
        torch.cuda, "memory_allocated", lambda device: made.append("allocated") or next(held)
    )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(held))
    return made


def waiting(times: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(times):
            warnings.warn(
                "called a synchronizing CUDA operation (Triggered internally)", stacklevel=1
            )
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    return work


@pytest.mark.parametrize("times", [0, 1, 3])
def test_each_wait_is_told_with_its_place_and_nothing_else_is(calls: list[Any], times: int) -> None:
    found = Gpu().waits(waiting(times))
    assert [place.rpartition(":")[0] for place in found] == [__file__] * times
    assert [call[1] for call in calls if call[0] == "set_sync_debug_mode"] == ["warn", "default"]


def test_a_pass_that_raises_leaves_the_debug_mode(calls: list[Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        Gpu().waits(lambda: 1 / 0)
    assert calls[-1] == ("set_sync_debug_mode", "default")


def test_a_gpu_is_waited_for_before_and_after(calls: list[Any]) -> None:
    device = Gpu.device
    assert Gpu().seconds(lambda: calls.append("work")) > 0
    assert calls == [("synchronize", device), "work", ("synchronize", device)]


def test_a_gpus_peak_is_above_what_stood_before(calls: list[Any]) -> None:
    device = Gpu.device
    assert Gpu().peak_bytes(lambda: calls.append("work")) == 600
    assert calls[1:] == [
        ("reset_peak_memory_stats", device),
        "allocated",
        "work",
        ("synchronize", device),
    ]


def test_a_cpu_is_timed_and_measured_by_the_same_calls() -> None:
    assert Cpu().seconds(lambda: time.sleep(0.02)) >= 0.02
    assert Cpu().peak_bytes(lambda: torch.ones(2**23)) > 2**23
    assert Cpu().waits(lambda: None) == []
