"""What a replica's process sets for itself, and that weights which are replaced leave a process
that froze them."""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from ray._common.formatters import JSONFormatter

from fakes import web
from tokenreward.deployment import process
from tokenreward.http.app import refuse_websockets
from tokenreward.wire import RewardsRequest, parse


@pytest.mark.parametrize(("num_cpus", "threads"), [(0.5, 1), (1, 1), (1.5, 1), (2, 2), (2.5, 2)])
def test_torch_gets_as_many_threads_as_the_replica_has_cpus(num_cpus: float, threads: int) -> None:
    code = (
        "import sys; from tokenreward.deployment.process import limit_threads;"
        "assert 'torch' not in sys.modules;"
        f"limit_threads({num_cpus}); import torch; print(torch.get_num_threads())"
    )
    wrong = {**os.environ, "OMP_NUM_THREADS": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=wrong, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == min(
        threads, os.cpu_count() or 1
    )  # torch takes no more than there are


def test_turns_are_short_and_searches_for_garbage_rare(this_process: None) -> None:
    process.tune_interpreter()
    assert sys.getswitchinterval() < 0.001
    assert gc.get_threshold()[0] >= 10_000


def test_memory_that_is_freed_between_blocks_in_use_goes_back_to_the_system() -> None:
    code = """
import os, time
from tokenreward.deployment.process import give_back_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def small_and_large():
    return bytearray(1000), bytearray(100_000)

pairs = [small_and_large() for _ in range(1000)]
in_use = [small for small, _ in pairs]  # glibc can give nothing between them back by itself
del pairs
before = resident()
give_back_memory(0.01)
for _ in range(500):
    if resident() < before - 80:
        break
    time.sleep(0.01)
print(before - resident())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) > 80


async def test_replaced_weights_are_freed_although_they_were_frozen(
    replica: Any, language_model: Path
) -> None:
    versions = [{"checkpoint": str(language_model), "version": version} for version in (3, 2, 1)]
    await replica.reconfigure(versions[0])
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    for version in versions[1:]:
        old = replica.slot.engine
        await old.score(
            parse(
                RewardsRequest,
                {"scorer": "endogenous", "items": [{"prompt": [5], "response": [6]}]},
            )
        )
        old.itself = old  # a cycle, as a checkpoint's own code may make them
        references = [weakref.ref(old), weakref.ref(old.checkpoint.model)]
        del old
        await replica.reconfigure(version)  # to a lower version goes a second engine
        await replica.follower.catch_up()
        assert replica.slot.engine.version == version["version"]
        assert [reference() for reference in references] == [None, None]
        assert gc.get_freeze_count() == pytest.approx(frozen, rel=0.2)


def test_our_log_goes_where_rays_goes_with_the_fields_that_it_has(
    replica: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rays, records = logging.getLogger("ray.serve"), []
    handler = logging.Handler(logging.INFO)
    handler.emit = records.append  # type: ignore[method-assign]
    rays.addHandler(handler)
    level = rays.level
    rays.setLevel(logging.INFO)
    try:
        logging.getLogger("tokenreward.http.guard").info("once", extra={"trace_id": "a"})
        logging.getLogger("tokenreward.http.guard").debug("never")
    finally:
        rays.removeHandler(handler)
        rays.setLevel(level)
    (record,) = records
    line = json.loads(JSONFormatter().format(record))
    assert (line["message"], line["trace_id"]) == ("once", "a")


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    headers = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["type"].encode()})


def test_a_post_that_asks_for_a_websocket_is_answered_as_any_other(this_process: None) -> None:
    """uvicorn would hand it to a protocol that refuses its body and never answers."""
    refuse_websockets()
    head = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    with web.serving(echo) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(head + b"content-length: 2\r\n\r\nab")
            answer = b""
            while b"http\r\n" not in answer + b"\r\n":
                answer += connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200 OK")
