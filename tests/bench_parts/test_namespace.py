"""A namespace has loopback alone, ends as its command ends, and takes all that runs in it when it
is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fakes import namespace


@pytest.fixture(scope="module")
def inside() -> Callable[[str], list[str]]:
    """The command line of Python code in a namespace."""
    try:
        namespace.command([])
    except namespace.NotPermitted as reason:
        pytest.skip(f"no namespace here: {reason}")
    return lambda code: namespace.command([sys.executable, "-c", code])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_ends_as_its_command_ends(inside: Callable[[str], list[str]]) -> None:
    assert run(inside("raise SystemExit(7)")).returncode == 7


def test_loopback_is_up_and_our_listeners_are_not_there(inside: Callable[[str], list[str]]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = listener.getsockname()
        code = (
            "import socket\n"
            f"try: socket.create_connection({address}); print('reached')\n"
            "except ConnectionRefusedError: print('refused')\n"
            "with socket.create_server(('127.0.0.1', 0)) as own: "
            "socket.create_connection(own.getsockname())\n"
            "print([name for _, name in socket.if_nameindex()])"
        )
        done = run(inside(code))
    answer, interfaces = done.stdout.splitlines()
    assert answer == "refused", done.stderr
    assert "'lo'" in interfaces and "eth0" not in interfaces


@pytest.mark.usefixtures("inside")
def test_what_runs_in_there_may_tidy_up_when_we_are_asked_to_end(tmp_path: Path) -> None:
    tidied = tmp_path / "tidied"
    inner = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "try: print('begun', flush=True); time.sleep(60)\nfinally: "
        f"pathlib.Path({str(tidied)!r}).touch()"
    )
    outer = (
        "import signal, sys; from fakes import namespace\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"namespace.run([sys.executable, '-c', {inner!r}])"
    )
    environment = {**os.environ, "PYTHONPATH": str(namespace.TESTS)}
    how = {"env": environment, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", outer], **how) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.wait(timeout=20) == 143
    assert tidied.exists()


def test_all_that_it_started_ends_with_it(inside: Callable[[str], list[str]]) -> None:
    code = (
        "import subprocess; subprocess.Popen(['sleep', '654321']); print('begun', flush=True); "
        "input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(inside(code), **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "begun\n"
        tree = psutil.Process(process.pid).children(recursive=True)
        assert any("654321" in each.cmdline() for each in tree)
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in tree):
        assert time.monotonic() < until
        time.sleep(0.05)
