"""What a private Ray instance needs of the machine before it starts: a folder and a port.

It knows the file system and sockets, and imports no Ray.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

RAY_FOLDER = "r"
# Ray's sockets are files below its folder, and the kernel takes paths of this many bytes.
_MAX_SOCKET_PATH_BYTES = 107
_LEAST_FREE_BYTES = 64 * 2**20  # Ray's processes die without a word when they cannot write
_LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"


class StartFailed(RuntimeError):
    """The service could not be brought up; the message says why."""


def make_folder() -> Path:
    """A new folder that only this user may enter. Raises StartFailed."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="tokenreward-"))
    except OSError as error:
        place = error.filename or "the folder for temporary files (`TMPDIR`)"
        raise StartFailed(f"cannot make a folder: {place}: {error.strerror}") from None
    num_bytes = len(os.fsencode(folder / RAY_FOLDER / _LONGEST_SOCKET))
    if num_bytes > _MAX_SOCKET_PATH_BYTES:
        folder.rmdir()
        raise StartFailed(
            f"the path of {folder.parent} is {num_bytes - _MAX_SOCKET_PATH_BYTES} bytes too long "
            "for Ray's sockets; choose another folder for temporary files with `TMPDIR`"
        )
    num_free = shutil.disk_usage(folder).free
    if num_free < _LEAST_FREE_BYTES:
        folder.rmdir()
        raise StartFailed(
            f"{folder.parent} has {num_free // 2**20} MiB free, Ray needs "
            f"{_LEAST_FREE_BYTES // 2**20}; choose another folder for temporary files with `TMPDIR`"
        )
    return folder


def refuse_taken_port(host: str, port: int) -> None:
    """Raises StartFailed if no process could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {host} port {port}: {error.strerror}; choose others with "
                "--host and --port"
            ) from None
