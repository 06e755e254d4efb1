"""The device: runs a batch of rows, and on failure splits it until only the culprit fails.

It belongs to one thread. A lost device (an illegal CUDA access, say) is not an item's fault: it
fails everything, and the replica's health with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tokenreward.contract import Outputs, RowRequest
from tokenreward.errors import InternalError, ItemError, OutOfMemory, ScorerFailed, frames
from tokenreward.forward.layout import Finished, Layout, Pending

Rows = Sequence[RowRequest]
Results = list[list[Outputs] | ItemError]

_FULL = ("out of memory", "alloc_failed", "can't allocate memory")
_LOST = (
    "cuda error",
    "device-side assert",
    "cublas_status",
    "cudnn_status",
    "unspecified launch failure",
)

# On a CPU passes of 4k tokens took less time per token than of 16k, which miss its caches, or of 1k
# and 2k, which share fewer prompts. For a GPU it is an estimate: enough work to hide what launching
# it takes.
_MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}

logger = logging.getLogger(__name__)


def max_batch_tokens(device: torch.device) -> int:
    """Tokens of a pass, where the settings do not say."""
    return _MAX_BATCH_TOKENS[device.type]


class DeviceLost(InternalError):
    """The device will not compute again; the replica must be replaced."""


class Runner:
    """One layout of one checkpoint, with its failures contained. `runs_ahead`: it computes while
    its thread goes on.

    A layout that waits while it is asked is not asked ahead: this batch's answer would wait for all
    of the next one.
    """

    def __init__(self, layout: Layout, *, runs_ahead: bool = False) -> None:
        self._layout = layout
        self.runs_ahead = runs_ahead and layout.runs_ahead
        self.lost: DeviceLost | None = None

    def run(self, batch: Sequence[Rows]) -> Results:
        """Outputs of each item's rows, or the error of that item alone. Raises DeviceLost."""
        return self.ask(batch)()

    def ask(self, batch: Sequence[Rows]) -> Callable[[], Results]:
        """The same, asked: calling what is returned waits for the device, and raises DeviceLost."""
        work = [row for rows in batch for row in rows]
        asked: Pending | ItemError | DeviceLost
        try:
            if self.runs_ahead:
                asked = self._layout.launch(work)
            else:
                asked = Finished(self._layout.run(work))
        except Exception as error:
            asked = self._blamed(batch, error)
        return partial(self._answer, batch, asked)

    def _answer(self, batch: Sequence[Rows], asked: Pending | ItemError | DeviceLost) -> Results:
        outcome: Results | ItemError | DeviceLost
        try:
            outcome = asked if isinstance(asked, Exception) else _by_item(batch, asked.result())
        except Exception as error:
            outcome = self._blamed(batch, error)
        if isinstance(outcome, DeviceLost):
            raise outcome
        if not isinstance(outcome, ItemError):
            return outcome
        # Only here, outside the except block, has the failed pass let go of its tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            alone = isinstance(outcome, OutOfMemory) and len(batch[0]) > 1
            return [self._row_by_row(batch[0]) if alone else outcome]
        middle = len(batch) // 2
        return self.run(batch[:middle]) + self.run(batch[middle:])

    def _row_by_row(self, rows: Rows) -> list[Outputs] | ItemError:
        """An item whose rows do not fit in one pass, one pass each. Raises DeviceLost."""
        outputs: list[Outputs] = []
        for row in rows:
            (found,) = self.run([[row]])
            if isinstance(found, ItemError):
                return found
            outputs += found
        return outputs

    def _blamed(self, batch: Sequence[Rows], error: Exception) -> ItemError | DeviceLost:
        logger.warning("a batch of %d items failed: %s", len(batch), frames(error))
        blamed = _blamed(error)
        if isinstance(blamed, DeviceLost):
            self.lost = blamed
        return blamed


def _by_item(batch: Sequence[Rows], outputs: list[Outputs]) -> Results:
    left = iter(outputs)
    return [[next(left) for _ in rows] for rows in batch]


def _blamed(error: Exception) -> ItemError | DeviceLost:
    if isinstance(error, ItemError):
        return error
    text = str(error).lower()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in text for sign in _FULL
    ):
        return OutOfMemory("the device has not enough memory for this item alone")
    if any(sign in text for sign in _LOST):
        return DeviceLost(f"the device is lost: {type(error).__name__}")
    return ScorerFailed(f"the forward pass failed on this item: {type(error).__name__}")
