"""A server under test: started as its users start it, on loopback, and always stopped, by pid.

It knows processes and ports, and nothing of what a server computes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from bench.cores import Cores, pin

TESTS = Path(__file__).resolve().parents[1]
_POLL_S = 0.25
_PARTING_S = 15.0
_LOG_TAIL = 1500
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class ServerFailed(RuntimeError):
    """It did not come up: why, and how its log ends."""

    def __init__(self, reason: str, log: Path) -> None:
        tail = log.read_text(errors="replace")[-_LOG_TAIL:].strip()
        super().__init__(f"{reason}; its log ends:\n{tail}")
        self.brief = f"{reason}: {(tail.splitlines() or ['its log is empty'])[-1]}"


@dataclass(frozen=True)
class Server:
    """A running server and what it started."""

    process: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pin(self, load: Callable[[], object], cores: Cores) -> None:
        """Binds the process that computes, the one that `load` keeps busy, to its core, and the
        others to theirs."""
        before = {process: _cpu_seconds(process) for process in self.tree()}
        load()
        tree = self.tree()
        busiest = max(tree, key=lambda process: _cpu_seconds(process) - before.get(process, 0.0))
        for process in tree:
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                pin(process.pid, cores.compute if process == busiest else cores.rest)

    def cpu_seconds(self) -> float:
        """What all its processes have taken so far."""
        return sum(map(_cpu_seconds, self.tree()))

    def stop(self) -> None:
        """Asks it to end, and ends whatever of it is left."""
        tree = self.tree()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PARTING_S)
        left = {*tree, *self.tree()}
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_PARTING_S)
        self.process.wait()


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    *,
    ready_url: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    patience_s: float = 300,
) -> Iterator[Server]:
    """The server, from when `ready_url` answers 200 on. Raises ServerFailed."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,  # Ctrl-C is ours alone: we stop it
            preexec_fn=_die_with_parent,
        )
    server = Server(process, log)
    try:
        _wait(server, ready_url, patience_s)
        yield server
    finally:
        server.stop()


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", module, *arguments]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, in which our modules are found."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **(changes or {})}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, url: str, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while True:
        if server.process.poll() is not None:
            raise ServerFailed(f"it ended with code {server.process.returncode}", server.log)
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        if time.monotonic() > until:
            raise ServerFailed(f"not ready after {patience_s:g} s", server.log)
        time.sleep(_POLL_S)


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _die_with_parent() -> None:
    """Even if we are killed and no `finally` runs."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
