"""Tells which tensors are the mapped pages of a file, and where in the file they are.

Loaders map a file of weights instead of reading it. A tensor that keeps the dtype of the file then
is the file: whoever overwrites the file in place changes the tensor, and a read beyond the end of a
file that was cut ends the process. This module looks at addresses, so it holds for every library
that maps files. It knows no formats of files.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

# The mappings of this process, each with the numbers of its pages.
_MAPPINGS = Path("/proc/self/smaps")
_HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+)(?: +(.*))?")
_WRITTEN = re.compile(r"(?:Anonymous|Swap): +[1-9]")


class Place(NamedTuple):
    """Where the bytes of a tensor are in a file.

    Attributes:
        file: Its path when it was mapped. Another file may have that path by now.
        inode: Its number in the file system.
        offset: The first byte.
        is_intact: Whether no byte of the mapping has been written to. Else the tensor may differ
            from the file, as what is written stays in this process.
    """

    file: str
    inode: int
    offset: int
    is_intact: bool = True


class MappedFiles:
    """The files that this process maps at this moment.

    Raises:
        OSError: This system does not say what a process maps.
    """

    def __init__(self) -> None:
        # Of each mapping: its first address, the address behind it, and the place of the first.
        self._mappings: list[tuple[int, int, Place]] = []
        is_file = False
        text = _MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape")
        for line in text.splitlines():
            header = _HEADER.fullmatch(line)
            if header is not None:
                start, end, offset = (int(number, 16) for number in header.groups()[:3])
                is_file = header[4] != "0" and bool(header[5])
                if is_file:
                    self._mappings.append((start, end, Place(header[5], int(header[4]), offset)))
            elif is_file and _WRITTEN.match(line):
                start, end, place = self._mappings[-1]
                self._mappings[-1] = start, end, place._replace(is_intact=False)
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
        return place._replace(offset=place.offset + address - start)


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
