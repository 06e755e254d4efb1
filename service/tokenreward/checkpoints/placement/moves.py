"""Moves what a layer reads to the layer's device, while a pass goes through a split model.

A layer gets hidden states from the layer before it. Positions, cos and sin of rotary embeddings,
and masks are made once, on the first device, and handed to every layer. Each of them is copied once
per pass and device. This module knows tensors and modules, and no model.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Arrivals:
    """A pre-hook of modules on one device, which brings their arguments there.

    Args:
        device: The device.
        others: The model's other devices. Tensors elsewhere, on the host say, stay where they are.
    """

    def __init__(self, device: torch.device, others: Collection[torch.device]) -> None:
        self._device = device
        self._others = frozenset(others)
        # By the id of the tensor that was copied: this tensor, so that no other gets its id while
        # the pass lasts, and the copy.
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call of a module, with all their tensors on the device."""
        if self._device.type == "cuda":
            # Some kernels run on the current device, and not on that of their arguments.
            torch.cuda.set_device(self._device)
        args, kwargs = tuple(args), dict(kwargs)
        # Hidden states differ from layer to layer. To keep them would take memory for nothing.
        if args and isinstance(args[0], Tensor):
            args = (self._bring(args[0]), *args[1:])
        elif isinstance(kwargs.get("hidden_states"), Tensor):
            kwargs["hidden_states"] = self._bring(kwargs["hidden_states"])
        return self._with_copies(args), self._with_copies(kwargs)

    def forget(self, *_: object) -> None:
        """Lets go of all copies: the pass is over."""
        self._copies.clear()

    def _with_copies(self, value: Any) -> Any:
        """A value with every tensor in it on the device.

        Lists and dicts are changed in place, since layers hand values to later layers in them.
        """
        if isinstance(value, Tensor):
            return self._copy_of(value)
        if isinstance(value, dict):
            for key in value:
                value[key] = self._with_copies(value[key])
        elif isinstance(value, list):
            value[:] = [self._with_copies(each) for each in value]
        elif isinstance(value, tuple):
            parts = [self._with_copies(each) for each in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    def _copy_of(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, copied by the first call of a pass that needs it."""
        if tensor.device not in self._others:
            return tensor
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor, to_other(tensor, self._device)
        return self._copies[id(tensor)][1]

    def _bring(self, tensor: Tensor) -> Tensor:
        return to_other(tensor, self._device) if tensor.device in self._others else tensor


def to_other(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor on another device.

    Between GPUs, torch makes a copy wait for all that both current streams have been asked for, and
    the streams wait for the copy. The first GPU would then stand still until the second one has
    finished the pass before. So the copy runs on a stream of its own on each side. It waits for the
    work that makes the tensor, and the receiver's later work waits for it.
    """
    if tensor.device.type != "cuda":
        return tensor.to(device)
    source, target = _side_stream(tensor.device), _side_stream(device)
    source.wait_stream(torch.cuda.current_stream(tensor.device))
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(source), torch.cuda.stream(target):
        copy = tensor.to(device, non_blocking=True)
    current.wait_stream(target)
    # Memory goes back to the stream that it was allocated for. Neither tensor's memory may be used
    # anew before the other stream is done with it.
    tensor.record_stream(source)
    copy.record_stream(current)
    return copy


@cache
def _side_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
