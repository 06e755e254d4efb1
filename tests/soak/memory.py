"""The resident memory of a service's processes over time, and whether it grows.

It knows nothing of what the processes do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil

MIB = 2**20


@dataclass
class ProcessMemory:
    """One process.

    Attributes:
        name: As Ray names it.
        times: When it was looked at, in seconds since the start of the load.
        resident: Its bytes in memory at these times.
        shared: Those of them that are files and shared memory.
    """

    name: str
    times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    shared: list[int] = field(default_factory=list)

    def growth(self, warm_up_s: float, window_s: float) -> tuple[float, float] | None:
        """The median of MiB after the warm-up and at the end, over a window each; None of a process
        that did not live long enough for both."""
        if self.times[-1] - self.times[0] < warm_up_s + 2 * window_s:
            return None
        times = np.array(self.times) - self.times[0]
        first = (times >= warm_up_s) & (times < warm_up_s + window_s)
        last = times > times[-1] - window_s
        megabytes = np.array(self.resident) / MIB
        return float(np.median(megabytes[first])), float(np.median(megabytes[last]))

    def slope(self) -> float:
        """MiB an hour in the second half of its life, by least squares."""
        half = len(self.times) // 2
        per_s, _ = np.polyfit(self.times[half:], np.array(self.resident[half:]) / MIB, 1)
        return float(per_s) * 3600


class Memory:
    """Looks at all processes of a service.

    Args:
        root: The first of them.

    Attributes:
        processes: By number, those that were seen.
    """

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self.processes: dict[int, ProcessMemory] = {}

    def look(self, at: float) -> None:
        """Notes the memory of each process that there is now."""
        for process in [self._root, *self._root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):  # it has ended
                # Ray puts the method that an actor runs now behind the actor's name.
                name, info = process.name().partition(".")[0], process.memory_info()
                if process == self._root:
                    name = "driver"
                seen = self.processes.setdefault(process.pid, ProcessMemory(name))
                if seen.name != name:  # one of Ray's idle processes has got its work
                    seen = self.processes[process.pid] = ProcessMemory(name)
                seen.times.append(at)
                seen.resident.append(info.rss)
                seen.shared.append(info.shared)


def table(processes: Sequence[ProcessMemory], warm_up_s: float, window_s: float) -> list[str]:
    """A line per process that lived long enough: MiB after the warm-up, at the end, growth."""
    lines = [f"{'process':<34}{'minutes':>8}{'MiB':>9}{'at end':>9}{'growth':>9}{'MiB/h':>8}"]
    for process in sorted(processes, key=lambda each: each.name):
        growth = process.growth(warm_up_s, window_s)
        if growth is not None:
            before, after = growth
            minutes = (process.times[-1] - process.times[0]) / 60
            share = f"{after / before - 1:+.2%}"
            lines.append(
                f"{process.name[:33]:<34}{minutes:>8.1f}{before:>9.1f}{after:>9.1f}{share:>9}"
                f"{process.slope():>8.1f}"
            )
    return lines
