"""Runs a batch on the device, and on a failure splits it until only the culprit fails.

It belongs to one thread. A lost device (an illegal CUDA access, say) is not an item's fault: it
fails everything, and the replica's health with it. This module knows rows and no items.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from tokenreward.contract import Outputs, RowRequest
from tokenreward.errors import InternalError, ItemError, OutOfMemory, ScorerFailed, frames
from tokenreward.forward.layout import Layout
from tokenreward.forward.transfer import Pending

_SIGNS_OF_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory")
_SIGNS_OF_LOSS = (
    "cuda error",
    "device-side assert",
    "cublas_status",
    "cudnn_status",
    "unspecified launch failure",
)

# On a CPU, passes of 4k tokens took the least time per token. Passes of 16k miss its caches, and
# passes of 1k and 2k share fewer prompts. For a GPU the number is an estimate: enough work to hide
# what a launch takes.
_MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}

logger = logging.getLogger(__name__)


def max_batch_tokens(device: torch.device) -> int:
    """Tokens of a pass on this device, where the settings do not say."""
    return _MAX_BATCH_TOKENS[device.type]


class DeviceLost(InternalError):
    """The device will not compute again; the replica must be replaced."""


class Runner:
    """Runs batches of rows on one layout, with failures contained.

    Args:
        layout: How rows go through the model.
        runs_ahead: Whether the device computes while its thread goes on. It has no effect if the
            layout's `launch` waits for the device: then the answer to this batch would wait for all
            of the next one.

    Attributes:
        lost: Set once the device is lost.
    """

    def __init__(self, layout: Layout, *, runs_ahead: bool = False) -> None:
        self.layout = layout
        self.runs_ahead = runs_ahead and layout.runs_ahead
        self.lost: DeviceLost | None = None

    def launch(self, batch: Sequence[Sequence[RowRequest]]) -> PendingBatch:
        """Launches the rows of each item. A failure is raised by `PendingBatch.result`."""
        if self.lost is not None:  # nothing that follows would tell of an item
            return PendingBatch(self, batch, self.lost)
        requests = [request for item in batch for request in item]
        try:
            if self.runs_ahead:
                return PendingBatch(self, batch, self.layout.launch(requests))
            outputs = self.layout.run(requests)
            return PendingBatch(self, batch, Pending(lambda: outputs))
        except Exception as error:
            return PendingBatch(self, batch, self.error_of(batch, error))

    def run(self, batch: Sequence[Sequence[RowRequest]]) -> list[list[Outputs] | ItemError]:
        """Launches a batch and waits for it, as `PendingBatch.result`."""
        return self.launch(batch).result()

    def error_of(
        self, batch: Sequence[Sequence[RowRequest]], error: Exception
    ) -> ItemError | DeviceLost:
        """Classifies a failure of the layout: the error of an item, or the loss of the device."""
        logger.warning("a batch of %d items failed: %s", len(batch), frames(error))
        if isinstance(error, ItemError):
            return error
        text, name = str(error).lower(), type(error).__name__
        says_no_memory = any(sign in text for sign in _SIGNS_OF_NO_MEMORY)
        if says_no_memory or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return OutOfMemory("the device has not enough memory for this item alone")
        if any(sign in text for sign in _SIGNS_OF_LOSS):
            self.lost = DeviceLost(f"the device is lost: {name}")
            return self.lost
        return ScorerFailed(f"the forward pass failed on this item: {name}")


@dataclass(frozen=True, slots=True, eq=False)
class PendingBatch:
    """A batch that was launched.

    Attributes:
        runner: The runner that launched it, which runs the parts of a batch that fails.
        batch: The rows of each item.
        state: The pass, or why there is none.
    """

    runner: Runner
    batch: Sequence[Sequence[RowRequest]]
    state: Pending[list[Outputs]] | ItemError | DeviceLost

    def result(self) -> list[list[Outputs] | ItemError]:
        """Waits for the device. A batch that fails is split until only the culprit fails.

        Returns:
            For each item the outputs of its rows, or the error of that item alone.

        Raises:
            DeviceLost: The device will not compute again.
        """
        batch, failure = self.batch, self.state
        if not isinstance(failure, Exception):
            try:
                outputs = iter(failure.result())
                return [list(islice(outputs, len(item))) for item in batch]
            except Exception as error:
                failure = self.runner.error_of(batch, error)
        if isinstance(failure, DeviceLost):
            raise failure
        # Not in the except block: there the exception's frames still hold tensors of the pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) > 1:
            middle = len(batch) // 2
            return self.runner.run(batch[:middle]) + self.runner.run(batch[middle:])
        if isinstance(failure, OutOfMemory) and len(batch[0]) > 1:
            return [self._run_row_by_row()]
        return [failure]

    def _run_row_by_row(self) -> list[Outputs] | ItemError:
        """Runs an item whose rows do not fit in one pass, one pass each. Raises DeviceLost."""
        outputs: list[Outputs] = []
        for request in self.batch[0]:
            (result,) = self.runner.run([[request]])
            if isinstance(result, ItemError):
                return result
            outputs += result
        return outputs
