"""Seconds and peak memory of competing functions, taken in turns so that a busy machine is busy for
all of them.

The engine is judged by one thread's CPU time, not the wall's: on a shared machine wall ratios move
by far more than what is measured.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

T = TypeVar("T")

_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Taken:
    """Seconds of one run: on the wall, and of the processors, over all processes of a side."""

    wall_s: float
    cpu_s: float


def in_turns(
    functions: Mapping[str, Callable[[], T]], *, rounds: int, num_unmeasured: int = 0
) -> dict[str, list[T]]:
    """What each function returned in each round, A B A B ...; the first rounds only warm up."""
    found: dict[str, list[T]] = {name: [] for name in functions}
    for turn in range(num_unmeasured + rounds):
        for name, function in functions.items():
            value = function()
            if turn >= num_unmeasured:
                found[name].append(value)
    return found


def cpu_seconds(functions: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each function over the rounds, in turns, after one unmeasured round."""
    clocked = {name: partial(_cpu_seconds, function) for name, function in functions.items()}
    return {
        name: median(taken)
        for name, taken in in_turns(clocked, rounds=rounds, num_unmeasured=1).items()
    }


def _cpu_seconds(function: Callable[[], object]) -> float:
    gc.collect()
    began = time.process_time()
    function()
    return time.process_time() - began


def peak_bytes(function: Callable[[], object]) -> int:
    """How far the resident memory rises above where it stood before the call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what malloc kept of earlier calls would hide what this one takes
    _CLEAR_REFS.write_text("5")
    before = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def single_threaded() -> None:
    """Lets torch use one thread; refuses to measure if something else runs in this process."""
    import torch

    torch.set_num_threads(1)
    assert threading.active_count() == 1, "another thread's CPU time would be counted"
