"""Files that are held open for weights to come."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenreward.checkpoints.stored import HeldFile


def test_a_file_that_changed_is_closed_once(tmp_path: Path) -> None:
    """Closed a second time, its number would be another file's by then."""
    file = tmp_path / "weights"
    file.write_bytes(b"longer than it was")
    stat = file.stat()
    stamp = (str(file), stat.st_dev, stat.st_ino, 1, stat.st_mtime_ns, stat.st_ctime_ns)
    with pytest.raises(OSError, match="weights changed while it was read") as refused:
        HeldFile(stamp)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    del refused  # and with it the half of a HeldFile
    for descriptor in others:
        os.close(descriptor)


def test_a_file_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HeldFile((str(tmp_path / "weights"), 0, 0, 0, 0, 0))
