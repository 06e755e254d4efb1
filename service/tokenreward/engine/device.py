"""The device: runs a batch of rows, and on failure splits it until only the culprit fails.

It belongs to one thread. A lost device (an illegal CUDA access, say) is not an item's fault: it fails everything, and
the replica's health with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from tokenreward.contract import Needs, Outputs, Row
from tokenreward.errors import InternalError, ItemError, OutOfMemory, ScorerFailed
from tokenreward.models.probe import Layout

Rows = Sequence[tuple[Row, Needs]]

_LOST = ("cuda error", "device-side assert", "cublas_status", "cudnn_status", "unspecified launch failure")

logger = logging.getLogger(__name__)


class DeviceLost(InternalError):
    """The device will not compute again; the replica must be replaced."""


class Device:
    """One layout of one checkpoint, with its failures contained."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.lost: DeviceLost | None = None

    def run(self, batch: Sequence[Rows]) -> list[list[Outputs] | ItemError]:
        """Outputs of each item's rows, or the error of that item alone. Raises DeviceLost."""
        try:
            return self._pass(batch)
        except Exception as error:
            self._raise_if_lost(error)
            if len(batch) > 1:
                logger.warning("a batch of %d items failed (%s); splitting it", len(batch), type(error).__name__)
                return self._halves(batch)
            logger.exception("an item failed alone")
            return [_blamed(error)]

    def _pass(self, batch: Sequence[Rows]) -> list[list[Outputs] | ItemError]:
        outputs = iter(self._layout.run([row for rows in batch for row in rows]))
        return [[next(outputs) for _ in rows] for rows in batch]

    def _halves(self, batch: Sequence[Rows]) -> list[list[Outputs] | ItemError]:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        return self.run(batch[:middle]) + self.run(batch[middle:])

    def _raise_if_lost(self, error: Exception) -> None:
        text = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError) and any(sign in text for sign in _LOST):
            self.lost = DeviceLost(f"the device is lost: {type(error).__name__}")
            raise self.lost from error


def _blamed(error: Exception) -> ItemError:
    if isinstance(error, ItemError):
        return error
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error).lower():
        return OutOfMemory("the device has not enough memory for this item alone")
    return ScorerFailed(f"the forward pass failed on this item: {type(error).__name__}")
