"""Who runs where: the process that computes on one core, everything else on the others, on both
sides alike."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """`compute` and `rest` share nothing, unless there is one core only."""

    compute: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def of(cls, available: set[int]) -> Cores:
        first, *others = sorted(available)
        return cls(frozenset({first}), frozenset(others or [first]))

    @classmethod
    def here(cls) -> Cores:
        """Of the cores that this process may use."""
        return cls.of(os.sched_getaffinity(0))

    def describe(self) -> str:
        if self.compute == self.rest:
            return "one core for everything"
        return (
            f"the process that computes on core {_listed(self.compute)}, all else on "
            f"{_listed(self.rest)}"
        )


def pin(pid: int, cores: frozenset[int]) -> None:
    """Binds all threads of a process, and those that they will start."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), cores)
        except ProcessLookupError:  # it has just ended
            continue


def _listed(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
