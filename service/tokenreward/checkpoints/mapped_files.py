"""Tells which tensors are the mapped pages of a file, and where in the file they are.

Loaders map a file of weights instead of reading it. A tensor that keeps the dtype of the file then
is the file: whoever overwrites the file in place changes the tensor, and a read beyond the end of a
file that was cut ends the process. This module looks at addresses, so it holds for every library
that maps files. It knows no formats of files.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

_MAPS = Path("/proc/self/maps")


class Place(NamedTuple):
    """Where the bytes of a tensor are in a file."""

    file: str
    offset: int


class MappedFiles:
    """The files that this process maps at this moment.

    Raises:
        OSError: This system does not say what a process maps.
    """

    def __init__(self) -> None:
        # Of each mapping: its first address, the address behind it, and the place of the first.
        self._mappings: list[tuple[int, int, Place]] = []
        for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            addresses, _, offset, _, inode, *path = line.split(maxsplit=5)
            if path and inode != "0":
                start, end = (int(address, 16) for address in addresses.split("-"))
                self._mappings.append((start, end, Place(path[0], int(offset, 16))))
        self._mappings.sort()

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where the first byte of a tensor is; None if that is in no file."""
        if tensor.device.type != "cpu":
            return None
        try:
            address = tensor.data_ptr()
        except RuntimeError:  # a quantised tensor, made of others, has no memory of its own
            return None
        index = bisect.bisect_right(self._mappings, address, key=lambda mapping: mapping[0]) - 1
        if index < 0:
            return None
        start, end, place = self._mappings[index]
        if address >= end:
            return None
        return Place(place.file, place.offset + address - start)


def own_memory(model: Any) -> None:
    """Copies the parameters and buffers of a model that are the mapped pages of a file, one after
    the other. The model then holds on to no file.

    Where the system does not say what is mapped, every tensor on the CPU is copied.
    """
    try:
        files = MappedFiles()
    except OSError:
        files = None
    for tensor in tensors_of(model):
        is_mapped = files is None or files.place_of(tensor) is not None
        if is_mapped and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def tensors_of(model: Any) -> Iterator[Tensor]:
    """The parameters and buffers of a model, each once."""
    yield from model.parameters()
    yield from model.buffers()
