"""Runs a batch on the device, and on a failure splits it until only the culprit fails.

It belongs to one thread. A lost device (an illegal CUDA access, say) is not an item's fault: it
fails everything, and the replica's health with it. This module knows rows and no items.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from itertools import islice

import torch

from tokenreward.checkpoints.default_dtype import computing
from tokenreward.contract import Outputs, RowRequest
from tokenreward.errors import InternalError, ItemError, OutOfMemory, ScorerFailed, frames
from tokenreward.forward.layout import Layout
from tokenreward.forward.transfer import Pending

_SIGNS_OF_NO_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory")
# What CUDA says of errors after which a process cannot use the device again ("the process must be
# terminated and relaunched").
_SIGNS_OF_LOSS = (
    "device-side assert",
    "ecc error",
    "hardware error",
    "hardware stack error",
    "illegal address",
    "illegal instruction",
    "illegal memory access",
    "invalid program counter",
    "launch timed out",
    "misaligned address",
    "no cuda-capable device",
    "not supported on global/shared address space",
    "nvlink error",
    "unspecified launch failure",
)
# Errors of a call or of the device: a launch that asks too much of a kernel and a library that
# refuses a shape are over with the call. Whether the device is lost, it must be asked.
_SIGNS_OF_DEVICE = ("cuda error", "cublas_status", "cudnn_status")

# On a CPU, passes of 4k tokens took the least time per token. Passes of 16k miss its caches, and
# passes of 1k and 2k share fewer prompts. For a GPU the number is an estimate: enough work to hide
# what a launch takes.
_MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}

# The outputs of an item's rows, or the error of that item alone.
Result = list[Outputs] | ItemError
# A pass, or why there is none.
Launched = Pending[list[Outputs]] | ItemError | InternalError

logger = logging.getLogger(__name__)


def max_batch_tokens(device: torch.device) -> int:
    """Tokens of a pass on this device, where the settings do not say."""
    return _MAX_BATCH_TOKENS[device.type]


def device_computes() -> bool:
    """Whether every GPU in use still computes: an error of its own comes up in every later call."""
    try:
        gpus = range(torch.cuda.device_count())
        in_use = [gpu for gpu in gpus if torch.cuda.memory_reserved(gpu)] or [0]
        return all(int(torch.ones(1, device=f"cuda:{gpu}").sum()) == 1 for gpu in in_use)
    except Exception:  # whatever it raises means the same
        return False


class Runner:
    """Runs batches of rows on one layout, with failures contained.

    Args:
        layout: How rows go through the model.
        num_ahead: How many batches are launched behind the oldest unanswered one: 0 where the
            device computes within the launch, and one for each GPU. It has no effect if the
            layout's `launch` waits for the device: then the answer to this batch would wait for all
            of the next one.

    Attributes:
        lost: The error of everything that follows, once the device will not compute again: the
            replica must be replaced.
    """

    def __init__(self, layout: Layout, *, num_ahead: int = 0) -> None:
        self.layout = layout
        self.num_ahead = num_ahead if layout.runs_ahead else 0
        self.lost: InternalError | None = None

    def launch(self, batch: Sequence[Sequence[RowRequest]]) -> Pending[Sequence[Result]]:
        """Launches the rows of each item.

        A batch that fails is split until only the culprit fails. That, too, waits for the result.

        Returns:
            For each item the outputs of its rows, or the error of that item alone. Its `result`
            raises InternalError if the device will not compute again.
        """
        failures: list[str] = []
        launched = self._launch_pass(batch, failures)
        return Pending(partial(self._finish_batch, batch, launched, failures))

    def run(self, batch: Sequence[Sequence[RowRequest]]) -> list[Result]:
        """Launches a batch and waits for it."""
        failures: list[str] = []
        return self._finish_batch(batch, self._launch_pass(batch, failures), failures)

    def _finish_batch(
        self, batch: Sequence[Sequence[RowRequest]], launched: Launched, failures: list[str]
    ) -> list[Result]:
        """Waits for a batch, and logs its failures in one line: where one item makes a pass fail,
        every pass that has the item raises the same error."""
        try:
            return self._finish(batch, launched, failures)
        finally:
            if failures:
                names = ", ".join(dict.fromkeys(failure.split()[0] for failure in failures))
                logger.warning(
                    "a batch of %d items failed in %d passes (%s); the first: %s",
                    len(batch),
                    len(failures),
                    names,
                    failures[0],
                )

    def _launch_pass(self, batch: Sequence[Sequence[RowRequest]], failures: list[str]) -> Launched:
        """Gives the pass over all the rows, or why there is none."""
        if self.lost is not None:  # nothing that follows would tell of an item
            return self.lost
        requests = [request for item in batch for request in item]
        try:
            with computing():
                if self.num_ahead:
                    return self.layout.launch(requests)
                outputs = self.layout.run(requests)
            return Pending(lambda: outputs)
        except Exception as error:
            return self._error_of(error, failures)

    def _finish(
        self, batch: Sequence[Sequence[RowRequest]], launched: Launched, failures: list[str]
    ) -> list[Result]:
        """Waits for a pass. If it fails, or could not be launched, runs the parts of the batch."""
        if isinstance(launched, Exception):
            failure = launched
        else:
            try:
                outputs = iter(launched.result())
                return [list(islice(outputs, len(item))) for item in batch]
            except Exception as error:
                failure = self._error_of(error, failures)
        if isinstance(failure, InternalError):
            raise failure
        # Not in the except block: there the exception's frames still hold tensors of the pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) > 1:
            middle = len(batch) // 2
            results: list[Result] = []
            for part in (batch[:middle], batch[middle:]):
                results += self._finish(part, self._launch_pass(part, failures), failures)
            return results
        if isinstance(failure, OutOfMemory) and len(batch[0]) > 1:
            return [self._run_row_by_row(batch[0], failures)]
        return [failure]

    def _run_row_by_row(self, item: Sequence[RowRequest], failures: list[str]) -> Result:
        """Runs an item whose rows do not fit in one pass, one pass each.

        Raises:
            InternalError: The device will not compute again.
        """
        outputs: list[Outputs] = []
        for request in item:
            part = [[request]]
            (result,) = self._finish(part, self._launch_pass(part, failures), failures)
            if isinstance(result, ItemError):
                return result
            outputs += result
        return outputs

    def _error_of(self, error: Exception, failures: list[str]) -> ItemError | InternalError:
        """Classifies a failure of the layout: the error of an item, or the loss of the device.

        Its type and place are added to `failures`, and the exception itself is dropped: its frames
        hold tensors.
        """
        failures.append(frames(error))
        if isinstance(error, ItemError):
            return error
        text, name = str(error).lower(), type(error).__name__
        says_no_memory = any(sign in text for sign in _SIGNS_OF_NO_MEMORY)
        if says_no_memory or isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return OutOfMemory("the device has not enough memory for this item alone")
        is_lost = any(sign in text for sign in _SIGNS_OF_LOSS)
        if not is_lost and any(sign in text for sign in _SIGNS_OF_DEVICE):
            is_lost = not device_computes()
        if is_lost:
            self.lost = InternalError(f"the device is lost: {name}")
            return self.lost
        return ScorerFailed(f"the forward pass failed on this item: {name}")
