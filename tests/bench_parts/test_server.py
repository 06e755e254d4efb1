"""A server is up when it is handed out, bound to its cores, and gone with all that it started when
the block ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.cores import Cores
from bench.server import ServerFailed, environment, free_port, serving

BUSY = f"{sys.executable} -c 'while True: pass'"


def command(port: int, beside: str = "sleep 600") -> list[str]:
    """A shell with two children, one of which answers HTTP."""
    return ["sh", "-c", f"{beside} & {sys.executable} -m http.server {port} --bind 127.0.0.1"]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_whole_tree_is_gone_when_the_block_fails(tmp_path: Path) -> None:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}/", tmp_path / "log"
    with (  # noqa: PT012 - what is in the block is the test
        pytest.raises(KeyboardInterrupt),
        serving(command(port), ready_url=url, log=log) as server,
    ):
        tree = server.tree()
        assert len(tree) == 3
        raise KeyboardInterrupt
    assert not any(process.is_running() for process in tree)


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match="code 3; its log ends:\nno such model"),
        serving(
            ["sh", "-c", "echo no such model; exit 3"],
            ready_url="http://127.0.0.1:9/",
            log=tmp_path / "log",
        ),
    ):
        pass


def test_a_server_that_never_answers_is_stopped(tmp_path: Path) -> None:
    url, log = f"http://127.0.0.1:{free_port()}/", tmp_path / "log"
    begun = set(psutil.Process().children())
    with (
        pytest.raises(ServerFailed, match="not ready after 1 s"),
        serving(["sleep", "600"], ready_url=url, log=log, patience_s=1),
    ):
        pass
    assert set(psutil.Process().children()) == begun


def test_the_process_that_computes_gets_its_core_and_the_others_the_rest(tmp_path: Path) -> None:
    available = sorted(os.sched_getaffinity(0))
    cores = Cores(frozenset(available[:1]), frozenset(available[-1:]))
    port = free_port()
    with serving(
        command(port, BUSY), ready_url=f"http://127.0.0.1:{port}/", log=tmp_path / "log"
    ) as server:
        server.pin(lambda: time.sleep(0.5), cores)
        bound = {
            tuple(process.cmdline()[-1:]): set(process.cpu_affinity()) for process in server.tree()
        }
    assert bound.pop(("while True: pass",)) == cores.compute
    assert set(map(frozenset, bound.values())) == {cores.rest}


def test_cores_are_told_apart_unless_there_is_one() -> None:
    assert Cores.of({4, 2, 3}) == Cores(frozenset({2}), frozenset({3, 4}))
    assert Cores.of({4, 2, 3}).describe() == "the process that computes on core 2, all else on 3, 4"
    assert Cores.of({5}).describe() == "one core for everything"


def test_a_server_goes_with_a_bench_that_is_killed(tmp_path: Path) -> None:
    port = free_port()
    text = (
        "import sys, time; from pathlib import Path; from bench.server import serving\n"
        f"with serving([sys.executable, '-m', 'http.server', '{port}', '--bind', '127.0.0.1'],"
        f" ready_url='http://127.0.0.1:{port}/', log=Path({str(tmp_path / 'log')!r})) as server:\n"
        "    print(server.process.pid, flush=True); time.sleep(600)"
    )
    run = [sys.executable, "-c", text]
    with subprocess.Popen(run, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        server = psutil.Process(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
    until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
