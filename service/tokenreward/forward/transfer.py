"""Moves index arrays to the device and numbers back to the host, each in one copy.

Nobody waits for a copy while it is launched. A device works in the order in which it is asked, so
the copy of a pass's numbers must be launched right behind that pass: launched behind the next pass,
it would arrive when the next pass has ended. `Pending.result` waits for its own copy and for
nothing behind it. This module knows arrays and no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class Pending(Generic[Result]):
    """Work that was launched on the device: a copy to the host, or a pass over rows.

    Attributes:
        wait: Waits for the work and gives its result. It holds what the result is made of, and none
            of the device's memory.
    """

    wait: Callable[[], Result]

    def result(self) -> Result:
        """Waits for the device: for this work only, and for nothing that was launched later.

        Raises:
            Exception: whatever the device failed with by then.
        """
        return self.wait()


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies int64 arrays to the device, all of them in one copy.

    Returns:
        Tensors of the arrays' shapes. On the CPU they share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array).to(device) for array in arrays]
    flat = np.concatenate([np.empty(0, dtype=np.int64), *(array.reshape(-1) for array in arrays)])
    # A copy from ordinary memory waits until the device has nothing else to do; a copy from pinned
    # memory does not. torch keeps pinned memory that is let go of until the copies from it have
    # ended, so it may be let go of right away.
    tensor = torch.from_numpy(flat).pin_memory().to(device, non_blocking=True)
    ranges = _ranges([array.size for array in arrays])
    return [
        tensor[start:stop].view(array.shape)
        for (start, stop), array in zip(ranges, arrays, strict=True)
    ]


def to_ends(
    of_first: Sequence[np.ndarray],
    of_last: Sequence[np.ndarray],
    first: torch.device,
    last: torch.device,
) -> list[Tensor]:
    """Copies int64 arrays to the first and the last device of a model, which are mostly one device.

    Args:
        of_first: What the embedding and the layers read: ids, positions.
        of_last: What the last layer and the heads read: places of tokens.
        first: The model's first device.
        last: Its last device.

    Returns:
        Tensors of the arrays' shapes, in the order of the arguments. For one device it is one copy.
    """
    if first == last:
        return to_device([*of_first, *of_last], first)
    return [*to_device(of_first, first), *to_device(of_last, last)]


def to_host(tensors: Sequence[Tensor]) -> Pending[list[np.ndarray]]:
    """Launches one copy of float32 tensors to arrays of the same shapes.

    On the CPU nothing is copied: the arrays share the tensors' memory.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        arrays = [tensor.numpy() for tensor in tensors]
        return Pending(lambda: arrays)
    return copy_to_host(tensors)


def copy_to_host(tensors: Sequence[Tensor]) -> Pending[list[np.ndarray]]:
    """The copy that `to_host` launches where there is something to copy."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    event = torch.cuda.current_stream(flat.device).record_event()
    numbers, ranges = host.numpy(), _ranges([tensor.numel() for tensor in tensors])
    arrays = [
        numbers[start:stop].reshape(tensor.shape)
        for (start, stop), tensor in zip(ranges, tensors, strict=True)
    ]

    def wait() -> list[np.ndarray]:
        event.synchronize()  # the arrays hold nothing before it
        return arrays

    return Pending(wait)


def _ranges(sizes: list[int]) -> list[tuple[int, int]]:
    """Where parts of these sizes start and stop when they follow one another."""
    return list(pairwise(np.cumsum([0, *sizes]).tolist()))
