"""The device's clock: seconds, peak memory, the host's waits and what keeps it busy. The CPU's is
for rehearsals: the same calls, so that nothing else asks what it runs on."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench.timing import peak_bytes

Function = Callable[[], object]

_WAITED = "called a synchronizing"  # what torch says of an operation that waits for the device


class Gpu:
    """The first one."""

    device = torch.device("cuda", 0)
    activities = (ProfilerActivity.CPU, ProfilerActivity.CUDA)
    kind = DeviceType.CUDA

    def __str__(self) -> str:
        found = torch.cuda.get_device_properties(self.device)
        return (
            f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} "
            "multiprocessors"
        )

    def seconds(self, function: Function) -> float:
        torch.cuda.synchronize(self.device)
        began = time.perf_counter()
        function()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - began

    def peak_bytes(self, function: Function) -> int:
        """How far the allocated memory rises above where it stood before the call."""
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def waits(self, function: Function) -> list[str]:
        """Where the host waited for the device: `file:line` each time."""
        torch.cuda.synchronize(self.device)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return [f"{each.filename}:{each.lineno}" for each in caught if _WAITED in str(each.message)]

    def busy_us(self, event: Any) -> float:
        """Microseconds of a profiler's event, which is of this device's `kind`."""
        return float(event.self_device_time_total)

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class Cpu:
    """In place of a GPU."""

    device = torch.device("cpu")
    activities = (ProfilerActivity.CPU,)
    kind = DeviceType.CPU

    def __str__(self) -> str:
        return "CPU, a rehearsal: tiny shapes, nothing is judged"

    def seconds(self, function: Function) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    def peak_bytes(self, function: Function) -> int:
        return peak_bytes(function)

    def waits(self, function: Function) -> list[str]:
        function()
        return []

    def busy_us(self, event: Any) -> float:
        return float(event.self_cpu_time_total)

    def release(self) -> None:
        gc.collect()


Clock = Gpu | Cpu
