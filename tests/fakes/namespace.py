"""A network and processes of our own: what runs in there is reached by nobody outside, and gone
when it ends.

`run(argv)` runs something there, `command(argv)` is its command line. In there this module is the
first process: it raises loopback, keeps the machine's HAProxy files out of sight, starts the
command, buries orphans, and takes everything with it at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

TESTS = Path(__file__).resolve().parent
HAPROXY_FILES = Path("/tmp/haproxy-serve")  # noqa: S108 - where Ray puts them

_ISOLATED = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_AS_ROOT_IN_THERE = [*_ISOLATED, "--map-root-user"]
_PARTING_S = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


class NotPermitted(RuntimeError):
    """This machine lets us have no namespaces; the message says what it answered."""


def command(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in there, and ends as it ends. Raises NotPermitted."""
    return [*_way_in(), sys.executable, str(TESTS / "namespace.py"), *argv]


def run(argv: Sequence[str]) -> int:
    """The exit code of `argv` in there. It ends with us, in good order if we are asked to. Raises
    NotPermitted."""
    with subprocess.Popen(command(argv), preexec_fn=_killed_with_parent) as process:
        try:
            return process.wait()
        except BaseException:
            for first in psutil.Process(process.pid).children():
                first.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PARTING_S)
            raise
        finally:
            process.kill()


def _way_in() -> list[str]:
    """Directly, as root may; else as a user who is root in there only."""
    answers = []
    for way in (_ISOLATED, _AS_ROOT_IN_THERE):
        if shutil.which(way[0]) is None:
            raise NotPermitted("there is no command `unshare`")
        tried = subprocess.run([*way, "true"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return way
        answers.append(tried.stderr.strip())
    raise NotPermitted("; ".join(answers))


def main(argv: Sequence[str]) -> int:
    """The first process in there. Returns the exit code of `argv`."""
    _raise_loopback()
    _hide(HAPROXY_FILES)
    child = subprocess.Popen(argv)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the child, too
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def _killed_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _raise_loopback() -> None:
    with socket.socket() as any_socket:
        empty = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, empty))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _hide(folder: Path) -> None:
    """Puts an empty one over it that only this namespace sees."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
