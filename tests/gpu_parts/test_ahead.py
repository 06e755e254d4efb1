"""A late answer shows, and a mixed-up one: a thread that works off passes in order plays the
device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpu import ahead
from gpu.stand import Stand
from tokenreward.contract import Outputs

PASS_S = 0.05


class Asleep:
    """A pass on the device's thread. Its answer is behind it, or, `late`, behind all passes so
    far."""

    def __init__(self, device: ThreadPoolExecutor, *, late: bool) -> None:
        self._device, self._late = device, late
        self._asleep = device.submit(time.sleep, PASS_S)

    def result(self) -> Any:
        return (self._device.submit(int) if self._late else self._asleep).result()


class Line:
    """Asked for passes, and fetched as soon as they have ended; or, `late`, behind all that has
    been asked for."""

    def __init__(self, *, late: bool) -> None:
        self._device = ThreadPoolExecutor(1)
        self._late = late

    def launch(self, work: Any) -> Asleep:
        return Asleep(self._device, late=self._late)

    def close(self) -> None:
        self._device.shutdown()


@pytest.fixture(params=[False, True], ids=["in time", "late"])
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    made = Line(late=request.param)
    yield made
    made.close()


def test_an_answer_behind_the_next_pass_is_seen(stand: Stand, line: Line) -> None:
    first, both = ahead.first_and_both(stand, line, [])
    assert both >= 2 * PASS_S
    assert (first / both <= ahead.FIRST) == (not line._late)


@dataclass
class Numbers:
    """A pass of so many rows, by what `number` says when the answer is fetched."""

    num_rows: int
    number: Callable[[], float]

    def result(self) -> list[Outputs]:
        return [Outputs(chosen=np.full(3, self.number(), np.float32)) for _ in range(self.num_rows)]


class Mixing:
    """Gives what was asked last, whoever fetches."""

    def __init__(self) -> None:
        self._last = 0.0

    def run(self, work: Any) -> list[Outputs]:
        return [Outputs(chosen=np.full(3, float(len(work)), np.float32)) for _ in work]

    def launch(self, work: Any) -> Numbers:
        self._last = float(len(work))
        return Numbers(len(work), lambda: self._last)


class Right(Mixing):
    def launch(self, work: Any) -> Numbers:
        return Numbers(len(work), lambda: float(len(work)))


def test_an_answer_that_is_another_passes_is_seen() -> None:
    works: list[Any] = [[None] * 3, [None] * 2, [None]]
    assert ahead.furthest(Right(), works) == 0
    assert ahead.furthest(Mixing(), works) == 2
