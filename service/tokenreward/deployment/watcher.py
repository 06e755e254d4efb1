"""A small process beside the service that clears up if the service is killed: it ends the processes
that are left, and removes their folder.

A killed process clears up nothing. The kernel ends Ray's servers with it, but Ray's agents look for
their parent once in a while, and lived for a minute. The watcher reads a pipe whose other end only
the service holds: the pipe ends when the service does, however that came. A service that stops by
itself ends the watcher first. It knows processes and a folder, and nothing of Ray.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of the variable, which each run sets anew
_PATIENCE_S = 10.0
_PAUSE_S = 0.1


def start_watcher(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the watcher of this process, in a session of its own, which Ctrl-C does not reach.

    Args:
        folder: What the watcher removes.
    """
    command = [sys.executable, "-m", __name__, str(folder)]
    return subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )


def clear_up(folder: Path) -> None:
    """Ends every process of this run, and removes the folder once none is left that could write
    there."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        processes = [each for each in psutil.process_iter() if belongs(each, folder)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not processes:
            break
        time.sleep(_PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def belongs(process: psutil.Process, folder: Path) -> bool:
    """Whether a process, other than this one, is of this run.

    Each has the run's token in its environment. Where a process has written its title over that,
    its command line or a file that it writes to names the folder. One with an environment and
    without the token is somebody's who reads the logs.
    """
    if process.pid == os.getpid():
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        token = os.environ.get(TOKEN)
        environment = process.environ()
        if token is not None and environment.get(TOKEN) == token:
            return True
        if "PATH" in environment:  # a title leaves no variable behind
            return False
        written = (file.path for file in process.open_files() if file.mode != "r")
        files = [*process.cmdline(), *written]
    except (psutil.Error, OSError):  # it is gone, or another user's
        return False
    return any(str(folder) in file for file in files)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clear_up(Path(sys.argv[1]))
