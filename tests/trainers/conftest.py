"""What the tests with trainers' own code share: one service with the demo models for all of them,
and native answers to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from fakes import web
from tokenreward_client import Client

START_S = 240.0


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a service with the demo models answers. It is stopped by its process id; one that
    `TRAINERS_URL` names is left alone."""
    if "TRAINERS_URL" in os.environ:
        yield os.environ["TRAINERS_URL"]
        return
    port = web.free_port()
    output = tmp_path_factory.mktemp("serve") / "output.txt"
    command = [sys.executable, "-m", "tokenreward.cli", "serve", "--port", str(port)]
    with output.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
    root = psutil.Process(process.pid)
    try:
        until = time.monotonic() + START_S
        while "try: curl" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        tree = [root]
        with suppress(psutil.NoSuchProcess):  # it never began: its own words are the error
            tree += root.children(recursive=True)
        process.terminate()
        psutil.wait_procs(tree, timeout=30)
        for child in psutil.wait_procs(tree, timeout=0)[1]:
            child.kill()
        process.wait()


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client
