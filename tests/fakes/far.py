"""A GPU's part, played by `meta`: pinned memory, copies that nobody waits for, and events.

Its tensors hold nothing, so whatever must look at a value fails. What comes to the host is there
once an event recorded after its copy has been waited for, and no earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_assert_async",
    "is_nonzero",
    "equal",
    "item",
}


class Line:
    """What was asked of the device, in order. `diary`: "to device", "to host", "event n", "wait n";
    numbers from 1.

    `fault`: what waiting raises.
    """

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.fault: Exception | None = None
        self.num_events = 0
        self.num_copies = 0
        self._coming: list[Callable[[], object]] = []

    def record_event(self) -> Event:
        self.num_events += 1
        self.diary.append(f"event {self.num_events}")
        return Event(self, self.num_events, len(self._coming))

    def bring(self, host: Tensor, device: Tensor) -> None:
        """What `meta` sends is the number of the copy, as it has none of its own."""
        self.num_copies += 1
        self.diary.append("to host")
        sent = np.full(host.shape, self.num_copies) if device.is_meta else device.numpy().copy()
        memory = host.numpy()
        memory[...] = np.nan
        self._coming.append(partial(np.copyto, memory, sent))

    def arrive(self, number: int, num_copies: int) -> None:
        self.diary.append(f"wait {number}")
        if self.fault is not None:
            raise self.fault
        for copy in self._coming[:num_copies]:
            copy()


class Event:
    def __init__(self, line: Line, number: int, num_copies: int) -> None:
        self._line, self._number, self._num_copies = line, number, num_copies

    def synchronize(self) -> None:
        self._line.arrive(self._number, self._num_copies)


class Watch(TorchDispatchMode):
    """Raises for what makes the host wait; notes the copies."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        assert name not in WAITS, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [
                index
                for index in args[1]
                if index is not None and index.dtype in (torch.bool, torch.uint8)
            ]
            assert not masks, "a mask as index waits for the device to count it"
        if name in ("pin_memory", "_pin_memory"):
            return self._pin(args[0].clone())
        if kwargs.get("pin_memory"):
            return self._pin(func(*args, **kwargs | {"pin_memory": False}))
        if name == "copy_" and self._is_pinned(args[0]):
            assert args[2:] == (True,), "copy_ brings a tensor to the host and waits"
            self._line.bring(args[0], args[1])
            return args[0]
        out = func(*args, **kwargs)
        self._check(func, args, kwargs, out)
        return out

    def _check(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        devices |= {leaf.device.type for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        if len(devices) < 2:
            return
        given = (
            dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
            | kwargs
        )
        assert "non_blocking" in given, f"{name} mixes devices"
        assert tensors[0].device.type == "cpu", f"{name} brings a tensor to the host"
        assert given["non_blocking"], f"{name} copies to the device and waits"
        assert self._is_pinned(tensors[0]), f"{name} copies from ordinary memory and waits"
        self._line.diary.append("to device")

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor)
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and any(
            tensor.data_ptr() == each.data_ptr() for each in self._pinned
        )


class NoLists(TorchFunctionMode):
    """Raises for tensors made of Python's numbers, whose copy to the device no dispatch mode
    sees."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor), (
            f"{func.__name__} copies to the device and waits"
        )
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[Line]:
    """Within it, `meta` is a GPU, and what makes the host wait for it raises, but for an event's
    own waiting."""
    line = Line()
    with pytest.MonkeyPatch.context() as patch, Watch(line), NoLists():
        patch.setattr(torch.cuda, "current_stream", lambda device: line)
        yield line
