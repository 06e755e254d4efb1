"""Between host and device: index arrays there and numbers back, each in one copy.

A copy to the device waits for nobody, so it may stand anywhere in a pass; one to the host waits for all that was asked
of the device before, so a pass has one, at its end. It knows arrays and no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays of int64 on the device, of the same shapes. On the CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    flat = np.concatenate([array.reshape(-1) for array in arrays]) if arrays else np.empty(0, dtype=np.int64)
    host = torch.from_numpy(flat)
    if device.type == "cuda":
        host = host.pin_memory()  # from ordinary memory, a copy waits until the device has nothing else to do
    cuts = _cuts([array.size for array in arrays])
    moved = host.to(device, non_blocking=True)
    return [moved[top:below].view(array.shape) for (top, below), array in zip(cuts, arrays, strict=True)]


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Float32 tensors as arrays of the same shapes. On the CPU they share the tensors' memory."""
    if all(_is_on_host(tensor) for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    host = torch.cat([tensor.reshape(-1) for tensor in tensors]).cpu().numpy()
    cuts = _cuts([tensor.numel() for tensor in tensors])
    return [host[top:below].reshape(tensor.shape) for (top, below), tensor in zip(cuts, tensors, strict=True)]


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _cuts(sizes: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(np.cumsum([0, *sizes]).tolist()))
