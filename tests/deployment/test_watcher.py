"""What is left of a service that is killed: nothing of its own, and everything of others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SERVICE = """
import subprocess, sys, time
from pathlib import Path
from tokenreward.deployment.watcher import start_watcher
folder = Path(sys.argv[1])
watcher = start_watcher(folder)
code = "import time; time.sleep(600)"
own = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
bare = subprocess.Popen([sys.executable, "-c", code, str(folder)], env={}, start_new_session=True)
with (folder / "logs" / "worker.out").open("a") as log:
    writer = subprocess.Popen(
        [sys.executable, "-c", code], env={}, stdout=log, start_new_session=True
    )
print(watcher.pid, own.pid, bare.pid, writer.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("is_killed", [True, False])
def test_processes_and_folder_go_with_the_service_and_others_stay(
    tmp_path: Path, is_killed: bool
) -> None:
    folder = tmp_path / "run"
    (folder / "logs").mkdir(parents=True)
    log = folder / "logs" / "worker.out"
    log.touch()
    others = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    with log.open() as file:
        strangers = [
            subprocess.Popen(["tail", "-f", log], env=others, stdout=subprocess.DEVNULL),
            subprocess.Popen(["sleep", "600"], env={}, stdin=file),
            subprocess.Popen(["sleep", "600"], env={**others, "RAY_AUTH_TOKEN": "another"}),
        ]
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(folder)],
        env={**os.environ, "RAY_AUTH_TOKEN": "ours"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in service.stdout.readline().split()]
    try:
        if is_killed:
            service.kill()
        until = time.monotonic() + (20 if is_killed else 1)
        while any(map(is_alive, processes)) and time.monotonic() < until:
            time.sleep(0.05)
        assert [is_alive(each) for each in processes] == [not is_killed] * 4
        assert folder.exists() is not is_killed
        assert [stranger.poll() for stranger in strangers] == [None] * 3
    finally:
        for process in (*strangers, *filter(is_alive, processes[1:]), service):
            process.kill()
        for child in (*strangers, service):
            child.wait()
        service.stdout.close()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
