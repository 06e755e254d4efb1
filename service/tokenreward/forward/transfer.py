"""Between host and device: index arrays there and numbers back, each in one copy that nobody waits
for.

The device works in the order it is asked, so what is to come back is asked for right behind the
pass that gives it: asked for behind the next pass, it would come when that one has ended. Whoever
wants the numbers waits for their copy and for nothing after it. It knows arrays and no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of int64 on the device, of the same shapes. On the CPU they share the arrays'
    memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    flat = (
        np.concatenate([array.reshape(-1) for array in arrays])
        if arrays
        else np.empty(0, dtype=np.int64)
    )
    # From ordinary memory, a copy waits until the device has nothing else to do. Of pinned memory
    # torch keeps what is let go of, and gives it to another only after the copies from it or to it.
    moved = torch.from_numpy(flat).pin_memory().to(device, non_blocking=True)
    cuts = _cuts([array.size for array in arrays])
    return [
        moved[top:below].view(array.shape) for (top, below), array in zip(cuts, arrays, strict=True)
    ]


def to_host(tensors: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
    """Float32 tensors as arrays of the same shapes: their copy is asked for, and calling what is
    returned waits for it, and raises what the device failed with by then. On the CPU they share the
    tensors' memory."""
    if all(_is_on_host(tensor) for tensor in tensors):
        arrays = [tensor.numpy() for tensor in tensors]
        return lambda: arrays
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    arrived = torch.cuda.current_stream(flat.device).record_event()
    return partial(_arrived, host, arrived.synchronize, [tensor.shape for tensor in tensors])


def _arrived(
    host: Tensor, wait: Callable[[], object], shapes: list[torch.Size]
) -> list[np.ndarray]:
    wait()
    numbers, cuts = host.numpy(), _cuts([shape.numel() for shape in shapes])
    return [
        numbers[top:below].reshape(shape) for (top, below), shape in zip(cuts, shapes, strict=True)
    ]


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _cuts(sizes: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(np.cumsum([0, *sizes]).tolist()))
