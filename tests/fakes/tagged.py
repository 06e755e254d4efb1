"""Devices that are told apart on a machine without GPUs.

Each storage on one of them has a tag. An operator that meets two devices, or a device and the host,
raises `Mixed`, as CUDA would. Tensors say that they are on their device, and `.to` copies. The
numbers are those of the CPU, as all of it runs there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

HOST = torch.device("cpu")
_CROSSING = {"copy_", "_to_copy", "to", "set_data", "_has_compatible_shallow_copy_type"}


def gpus(num: int) -> tuple[torch.device, ...]:
    """So many devices: `cpu:0`, `cpu:1`, ..., which torch tells from one another and from `cpu`."""
    return tuple(torch.device("cpu", index) for index in range(num))


class Mixed(RuntimeError):
    """An operator met tensors of two devices."""


class _Tags:
    """Which storage is on which device."""

    def __init__(self) -> None:
        # The weak reference keeps the address of the storage from being used again.
        self._devices: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.num_copies: Counter[tuple[torch.device, torch.device]] = Counter()

    def of(self, tensor: Tensor) -> torch.device:
        reference = StorageWeakRef(tensor.untyped_storage())
        _, device = self._devices.get(reference.cdata, (None, HOST))
        return device

    def put(self, tensor: Tensor, device: torch.device) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._devices[reference.cdata] = reference, device


class _Dispatch(TorchDispatchMode):
    def __init__(self, tags: _Tags) -> None:
        super().__init__()
        self._tags = tags

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        wanted = kwargs.get("device")
        if name == "to":
            wanted = next((arg for arg in args if isinstance(arg, torch.device)), wanted)
        if any(tensor.is_meta for tensor in tensors) or str(wanted) == "meta":
            return func(*args, **kwargs)
        devices = {self._tags.of(tensor) for tensor in tensors if tensor.dim() or name == "copy_"}
        # A number on the host may meet any device, and so may an empty list of tensors.
        devices |= {self._tags.of(tensor) for tensor in tensors if not tensor.dim()} - {HOST}
        if name == "index" and self._tags.of(args[0]) != HOST:
            devices.discard(HOST)  # CUDA brings indices from the host itself
        if len(devices) > 1 and name not in _CROSSING:
            raise Mixed(f"{func} meets {', '.join(sorted(map(str, devices)))}")
        args, kwargs = tree_map(_on_host, (args, kwargs))
        if name == "to" and wanted is not None:
            # As it is for a device: the copy is another tensor, also where the dtype is the same.
            kwargs["copy"] = wanted != self._tags.of(tensors[0])
            args = args[:1] + tuple(arg for arg in args[1:] if not isinstance(arg, bool))
        outputs = func(*args, **kwargs)
        if wanted is not None and tensors:
            self._tags.num_copies[self._tags.of(tensors[0]), wanted] += 1
        device = wanted or next(iter(devices), HOST)
        if name == "copy_":
            device = self._tags.of(args[0])
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and (name != "set_data"):
                self._tags.put(leaf, device)
        return outputs


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cpu":
        return HOST
    return value


class _Function(TorchFunctionMode):
    """Has tensors say their device, and makes the copies to the host that torch would skip."""

    def __init__(self, tags: _Tags) -> None:
        super().__init__()
        self._tags = tags

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__ and not args[0].is_meta:
            return self._tags.of(args[0])
        is_to_host = func == Tensor.cpu or (func == Tensor.to and HOST in args[1:])
        if is_to_host and self._tags.of(args[0]) != HOST:
            copy = args[0].clone()
            self._tags.put(copy, HOST)
            return copy
        if func == torch.tensor and torch.device(kwargs.get("device") or HOST).type == "cpu":
            device = torch.device(kwargs.pop("device", None) or HOST)
            made = func(*args, **kwargs)
            self._tags.put(made, device)
            return made
        return func(*args, **kwargs)


@contextmanager
def tagged() -> Iterator[Counter[tuple[torch.device, torch.device]]]:
    """Within it, the devices of `gpus` are devices.

    Yields:
        How many copies there were, by the devices that they were from and to.
    """
    tags = _Tags()
    with _Function(tags), _Dispatch(tags):
        yield tags.num_copies
