"""Runs a command in a network and process namespace of its own: nothing outside can reach it, and
all of its processes end with it.

`run(argv)` runs it; `command(argv)` is the command line that does. This module is the first process
in the namespace. It raises loopback, hides the machine's HAProxy files, starts the command, reaps
orphans, and at its end the kernel kills all that is left.
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

TESTS = Path(__file__).resolve().parents[1]
HAPROXY_FILES = Path("/tmp/haproxy-serve")  # noqa: S108 - where Ray puts them

_ISOLATED = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_ISOLATED_AS_ROOT = [*_ISOLATED, "--map-root-user"]
_GRACE_S = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


class NotPermitted(RuntimeError):
    """This machine allows no namespaces; the message holds its answers."""


def command(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a namespace, with its exit code. Raises NotPermitted."""
    return [*_unshare(), sys.executable, str(TESTS / "fakes" / "namespace.py"), *argv]


def run(argv: Sequence[str]) -> int:
    """The exit code of `argv` in a namespace.

    If this process is interrupted, the command gets SIGTERM and time to end. If this process dies,
    the command is killed.

    Raises:
        NotPermitted: This machine allows no namespaces.
    """
    with subprocess.Popen(command(argv), preexec_fn=_killed_with_parent) as process:
        try:
            return process.wait()
        except BaseException:
            for child in psutil.Process(process.pid).children():
                child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            raise
        finally:
            process.kill()


def _unshare() -> list[str]:
    """The command that opens a namespace: directly, as root may, or as a user who is root only
    inside."""
    answers = []
    for unshare in (_ISOLATED, _ISOLATED_AS_ROOT):
        if shutil.which(unshare[0]) is None:
            raise NotPermitted("there is no command `unshare`")
        trial = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
        if trial.returncode == 0:
            return unshare
        answers.append(trial.stderr.strip())
    raise NotPermitted("; ".join(answers))


def main(argv: Sequence[str]) -> int:
    """The first process of the namespace. Returns the exit code of `argv`."""
    _raise_loopback()
    _hide(HAPROXY_FILES)
    child = subprocess.Popen(argv)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts the child, too
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
    """Mounts an empty folder over it that only this namespace sees."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
