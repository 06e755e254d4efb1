"""Numbers of a tensor that wait to be copied: in memory, or still in the file that a loader mapped.

A file is held open, so it may be moved or removed meanwhile: its numbers stay. A file that is
written to instead is noticed: that OSError has no `errno`, as no call of the system failed. It is
read, not mapped: of a file that was cut short, a read gives an error, and a mapping ends the
process. This module knows models by the names of their tensors.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenreward.checkpoints.heads.gate import TRANSFORM
from tokenreward.checkpoints.mapped_files import MappedFiles, Place

PIECE_BYTES = 8 * 2**20  # what is read at a time

# A file at one moment: its path, device, inode, bytes, and when its content and its entry in the
# file system last changed.
FileStamp = tuple[str, int, int, int, int, int]
# A file, and the first byte of a tensor in it.
Stamp = tuple[FileStamp, int]
# How many bytes a file has, and when they last changed. Not the inode: some file systems on a
# network give another one to a file that nobody has open.
Content = tuple[int, int]


def contents_of(paths: Iterable[Path]) -> dict[Path, Content]:
    """What to know files by, for `refuse_changed`. A file that is gone is left out."""
    contents: dict[Path, Content] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            contents[path] = stat.st_size, stat.st_mtime_ns
    return contents


def refuse_changed(files: Mapping[Path, Content]) -> None:
    """Raises OSError for a file that has been written to, or replaced, since `contents_of`.

    One that was removed is no such file: whoever had opened it could read it to its end.
    """
    for path, content in contents_of(files).items():
        if content != files[path]:
            raise OSError(f"{path} changed while it was read")


def stamps_of(model: Any) -> dict[str, Stamp]:
    """Where the numbers of a model are that a file has, too: those of tensors that are still its
    mapped pages, as long as its path is still that file's."""
    places = places_of(model)
    files: dict[str, FileStamp] = {}
    for path in {place.file for place in places.values()}:
        with contextlib.suppress(OSError):
            stat = os.stat(path)
            times = stat.st_mtime_ns, stat.st_ctime_ns
            files[path] = (path, stat.st_dev, stat.st_ino, stat.st_size, *times)
    tensors = dict(named_tensors(model))
    return {
        name: (files[place.file], place.offset)
        for name, place in places.items()
        if place.file in files and files[place.file][2] == place.inode
        if place.is_intact and tensors[name].is_contiguous()
    }


def named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model that come from its checkpoint, by name; tied ones by each name.

    Other buffers are computed from the configuration, and some change as the model is used: rotary
    frequencies.
    """
    yield from model.named_parameters(remove_duplicate=False)
    persistent = set(model.state_dict(keep_vars=True))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in persistent or name == TRANSFORM:
            yield name, buffer


def places_of(model: Any) -> dict[str, Place]:
    """Where in files those tensors are that are still mapped; empty if the system does not say."""
    try:
        files = MappedFiles()
    except OSError:
        return {}
    places = {name: files.place_of(tensor) for name, tensor in named_tensors(model)}
    return {name: place for name, place in places.items() if place is not None}


class HeldFile:
    """A file that is open for reading.

    Args:
        stamp: The file. Raises OSError if its path is another file's by now.
    """

    _descriptor = -1  # until it is open

    def __init__(self, stamp: FileStamp) -> None:
        self.name = stamp[0]
        self._descriptor = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
        stat = os.fstat(self._descriptor)
        if (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) != stamp[1:5]:
            self.close()
            raise OSError(f"{self.name} changed while it was read")
        self._content = stamp[3:5]  # removing the file changes the entry's time, and nothing else

    def refuse_changed(self) -> None:
        """Raises OSError if the file has been written to since it was opened."""
        stat = os.fstat(self._descriptor)
        if (stat.st_size, stat.st_mtime_ns) != self._content:
            raise OSError(f"{self.name} was overwritten after it had been checked")

    def read(self, buffer: Tensor, offset: int) -> None:
        """Fills a buffer of bytes. Raises OSError if the file ends before that."""
        array: Any = buffer.numpy()
        view = memoryview(array)
        while view:
            num_bytes = os.preadv(self._descriptor, [view], offset)
            if not num_bytes:
                raise OSError(f"{self.name} ends early")
            view, offset = view[num_bytes:], offset + num_bytes

    def close(self) -> None:
        """Lets the file go."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close  # weights that were prepared may be dropped with the engine


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """The numbers of one tensor.

    Attributes:
        dtype: Of the numbers.
        shape: Of the tensor.
        memory: The tensor, if it is in memory.
        file: The file, if it is not.
        offset: Its first byte there. The numbers lie end to end, the last dimension first.
    """

    dtype: torch.dtype
    shape: torch.Size
    memory: Tensor | None = None
    file: HeldFile | None = None
    offset: int = 0

    def copy_to(self, target: Tensor) -> None:
        """Copies the numbers into a tensor of this shape and dtype, on any device.

        On a CPU a file is read right into the tensor: through a buffer it would take twice as long.
        For another device it needs `PIECE_BYTES`, and the tensor once more if its numbers do not
        lie end to end.
        """
        if self.memory is not None:
            target.copy_(self.memory)
            return
        if not target.is_contiguous():
            whole = torch.empty(self.shape, dtype=self.dtype)
            self.copy_to(whole)
            target.copy_(whole)
            return
        flat = target.detach().view(-1)
        if self.file is not None and target.device.type == "cpu":
            self.file.read(flat.view(torch.uint8), self.offset)
            return
        for start, piece in self._pieces(pinned=target.device.type == "cuda"):
            flat[start : start + len(piece)].copy_(piece)

    def is_finite(self) -> bool:
        """Whether there is no NaN and no infinity."""
        if not self.dtype.is_floating_point or self.dtype.itemsize < 2:
            return True
        if self.memory is not None:
            return bool(torch.isfinite(self.memory).all())
        return all(bool(torch.isfinite(piece).all()) for _, piece in self._pieces())

    def _pieces(self, *, pinned: bool = False) -> Iterator[tuple[int, Tensor]]:
        """The numbers in pieces, each with the index of its first number. A piece is gone when the
        next one is there."""
        assert self.file is not None
        size, num_left = self.dtype.itemsize, math.prod(self.shape)
        piece_numbers = PIECE_BYTES // size
        buffer = torch.empty(
            min(num_left, piece_numbers) * size, dtype=torch.uint8, pin_memory=pinned
        )
        start = 0
        while num_left:
            num_numbers = min(num_left, piece_numbers)
            part = buffer[: num_numbers * size]
            self.file.read(part, self.offset + start * size)
            yield start, part.view(self.dtype)
            start, num_left = start + num_numbers, num_left - num_numbers
