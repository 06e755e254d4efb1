"""The device: runs a batch of rows, and on failure splits it until only the culprit fails.

It belongs to one thread. A lost device (an illegal CUDA access, say) is not an item's fault: it fails everything, and
the replica's health with it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from tokenreward.contract import Needs, Outputs, Row
from tokenreward.errors import InternalError, ItemError, OutOfMemory, ScorerFailed, frames
from tokenreward.models.probe import Layout

Rows = Sequence[tuple[Row, Needs]]

_FULL = ("out of memory", "alloc_failed", "can't allocate memory")
_LOST = ("cuda error", "device-side assert", "cublas_status", "cudnn_status", "unspecified launch failure")

# What keeps the device busy: with more, a CPU's caches miss and a GPU gains nothing.
_MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}

logger = logging.getLogger(__name__)


def max_batch_tokens(device: torch.device) -> int:
    """Tokens of a pass, where the settings do not say."""
    return _MAX_BATCH_TOKENS[device.type]


class DeviceLost(InternalError):
    """The device will not compute again; the replica must be replaced."""


class Device:
    """One layout of one checkpoint, with its failures contained."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.lost: DeviceLost | None = None

    def run(self, batch: Sequence[Rows]) -> list[list[Outputs] | ItemError]:
        """Outputs of each item's rows, or the error of that item alone. Raises DeviceLost."""
        outcome = self._attempt(batch)
        if not isinstance(outcome, ItemError):
            return outcome
        # Only here, outside the except block, has the failed pass let go of its tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [outcome]
        middle = len(batch) // 2
        return self.run(batch[:middle]) + self.run(batch[middle:])

    def _attempt(self, batch: Sequence[Rows]) -> list[list[Outputs] | ItemError] | ItemError:
        try:
            outputs = iter(self._layout.run([row for rows in batch for row in rows]))
            return [[next(outputs) for _ in rows] for rows in batch]
        except Exception as error:
            logger.warning("a batch of %d items failed: %s", len(batch), frames(error))
            blamed = _blamed(error)
            if isinstance(blamed, DeviceLost):
                self.lost = blamed
                raise blamed from None
            return blamed


def _blamed(error: Exception) -> ItemError | DeviceLost:
    if isinstance(error, ItemError):
        return error
    text = str(error).lower()
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in text for sign in _FULL):
        return OutOfMemory("the device has not enough memory for this item alone")
    if any(sign in text for sign in _LOST):
        return DeviceLost(f"the device is lost: {type(error).__name__}")
    return ScorerFailed(f"the forward pass failed on this item: {type(error).__name__}")
