"""CPU seconds and peak memory of competing functions, taken in turns so that a busy machine is busy for all of them.

One thread's CPU time, not the wall's: on a shared machine wall ratios move by far more than what is measured.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

_CLEAR_REFS = Path("/proc/self/clear_refs")


def cpu_seconds(functions: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each function over the rounds, in turns, after one unmeasured round."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            gc.collect()
            began = time.process_time()
            function()
            if turn:
                taken[name].append(time.process_time() - began)
    return {name: median(seconds) for name, seconds in taken.items()}


def peak_bytes(function: Callable[[], object]) -> int:
    """How far the resident memory rises above where it stood before the call."""
    gc.collect()
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
