"""Where a figure is taken: the clock, the sizes, the device's rates, and one served model at a
time.

It knows no figures. A model is made, probed as the service probes it, and let go of before the
next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.timing import in_turns
from bench.workload import Item
from gpu.clock import Clock
from gpu.roofline import Rates
from gpu.shapes import Shape, build
from gpu.sizes import Sizes
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.placement import Placement
from tokenreward.contract import Needs, Outputs, RowRequest
from tokenreward.forward.probe import choose_layout

Work = list[RowRequest]


class NotPacked(RuntimeError):
    """The probe refused the packed layout on this device."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model under the layout that the probe chose for it."""

    shape: Shape
    model: Any
    layout: Any

    def run(self, batches: Sequence[Work]) -> list[Outputs]:
        return [outputs for batch in batches for outputs in self.layout.run(batch)]

    def num_computed(self, batches: Sequence[Work]) -> int:
        return sum(self.layout.num_computed([row for row, _ in batch]) for batch in batches)


class Stand:
    """`rehearse`: tiny models, whatever the clock."""

    def __init__(self, clock: Clock, sizes: Sizes, *, rounds: int, rehearse: bool) -> None:
        self.clock = clock
        self.sizes = sizes
        self._rounds = rounds
        self._rehearse = rehearse
        self._served: tuple[object, Served] | None = None

    @cached_property
    def rates(self) -> Rates:
        return Rates.measured(self.clock, square=self.sizes.square, copied=self.sizes.copied)

    def shape(self, real: Shape) -> Shape:
        return real.tiny() if self._rehearse else real

    def say(self, line: str) -> None:
        print(f"  {line}", flush=True)

    def served(self, real: Shape, task: Any, needs: Needs) -> Served:
        """The model and the layout that the probe chooses; those of the last call, if it asked for
        the same.

        Raises NotPacked: figures of a layout that is one row at a time would say nothing.
        """
        if self._served is not None and self._served[0] == (real, task, needs):
            return self._served[1]
        self.release()
        shape, began = self.shape(real), time.monotonic()
        self.say(f"{shape.name}: building and probing a {task}")
        checkpoint = self.checkpoint(build(shape, task, self.clock.device), task)
        built = time.monotonic()
        layout: Any = choose_layout(
            checkpoint, needs, say=lambda line: self.say(f"{shape.name}: {line}")
        )
        self.clock.release()  # the probe's float32 copy
        if layout.reason is not None:
            raise NotPacked(f"{shape.name}: {layout.reason}")
        self.say(
            f"{shape.name}: built {built - began:.0f} s, probed {time.monotonic() - built:.0f} s; "
            f"{layout.note}"
        )
        self._served = (real, task, needs), Served(shape, checkpoint.model, layout)
        return self._served[1]

    def checkpoint(self, model: Any, task: Any) -> Checkpoint:
        return Checkpoint(
            model=model, tokenizer=None, task=task, placement=Placement((self.clock.device,))
        )

    def release(self) -> None:
        """Lets go of the served model."""
        self._served = None
        self.clock.release()

    def turns(self, sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median seconds of each side, in turns, after one unmeasured round; without those that the
        device has no memory for."""
        fitting = {name: side for name, side in sides.items() if self._fits(side)}
        clocked = {name: partial(self.clock.seconds, side) for name, side in fitting.items()}
        return {
            name: median(taken) for name, taken in in_turns(clocked, rounds=self._rounds).items()
        }

    def _fits(self, side: Callable[[], object]) -> bool:
        try:
            side()
            return True
        except torch.OutOfMemoryError:
            pass
        self.clock.release()  # only here has the failed call let go of its tensors
        return False

    def items(
        self, lengths: Sequence[int], vocab_size: int, *, prompt: int | None = None
    ) -> list[Item]:
        """Random sequences that share nothing; without `prompt`, every token but the first is
        scored."""
        generator = np.random.default_rng(0)
        ids = [generator.integers(3, vocab_size, size=length) for length in lengths]
        return [Item(of[: prompt or 1], of[prompt or 1 :]) for of in ids]
