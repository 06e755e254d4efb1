"""A connection whose other end is gone is given up within seconds, and honest work is not: with a
real service whose cable is pulled."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import namespace
from tokenreward_client import AsyncClient, Client, DeadlineExceeded
from tokenreward_client.connection import CONNECT_TIMEOUT_S, transport_options

RUN = Path(__file__).with_name("cable_run.py")
NOTICED_S = 9.0  # of 40 s that each call has; 1 s of it is before the pull


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    if shutil.which("ip") is None:
        pytest.skip("there is no command `ip`")
    try:
        inside = namespace.command([sys.executable, str(RUN)])
    except namespace.NotPermitted as reason:
        pytest.skip(f"no namespace here: {reason}")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(inside, env=env, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["waiting", "awaited", "sent"])
def test_a_pulled_cable_ends_a_request_long_before_its_deadline(outcomes: Any, name: str) -> None:
    error, seconds = outcomes[name]
    assert error == "ConnectionFailed"
    assert seconds < NOTICED_S


def test_a_host_that_does_not_answer_is_given_up_after_the_connect_timeout(outcomes: Any) -> None:
    error, seconds = outcomes["unconnected"]
    assert error == "ConnectionFailed"
    assert seconds < 2 * CONNECT_TIMEOUT_S + 1  # one for the listing, one for the request


def test_work_that_takes_longer_than_a_dead_connection_is_waited_for(outcomes: Any) -> None:
    result, seconds = outcomes["honest"]
    assert result == "ok"
    assert seconds > NOTICED_S - 0.5


@pytest.mark.parametrize(
    ("environment", "is_own"),
    [
        ({}, True),
        ({"http_proxy": "http://proxy:1"}, False),
        ({"all_proxy": "http://proxy:1"}, False),
        ({"http_proxy": "http://proxy:1", "no_proxy": "other"}, False),
        ({"http_proxy": "http://proxy:1", "no_proxy": "service"}, True),
        ({"https_proxy": "http://proxy:1"}, True),
    ],
)
def test_a_proxy_of_the_environment_is_still_used(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_own: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    url, other_url = httpx.URL("http://service:8000"), httpx.URL("http://other:8000")
    kind, limits = httpx.HTTPTransport, httpx.Limits()
    assert ("transport" in transport_options([url], kind, limits)) is is_own
    assert "transport" in transport_options([url, other_url], kind, limits)


@pytest.fixture
def slow_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection that blocks takes 1.5 s, as if its first packet was lost."""
    connect = socket.create_connection

    def connect_late(address: Any, timeout: float, **options: Any) -> socket.socket:
        time.sleep(min(timeout, 1.5))
        if timeout <= 1.5:
            raise TimeoutError
        return connect(address, timeout, **options)

    monkeypatch.setattr(socket, "create_connection", connect_late)


@pytest.mark.usefixtures("slow_connections")
@pytest.mark.parametrize("num_addresses", [1, 2])
def test_time_that_a_connection_took_is_not_there_for_the_reply(
    edge: Any, num_addresses: int
) -> None:
    edge.listing_delay_s = 10.0
    began = time.monotonic()
    with (
        Client([edge.url] * num_addresses, timeout_s=4.0) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.scorers()
    assert edge.num_listed == 1
    assert time.monotonic() - began < 5.2  # and not 5.5


def test_time_that_the_head_of_a_reply_took_is_not_there_for_its_body() -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            time.sleep(2.0)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
            connection.recv(1)  # until the client gives up

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        with Client(url, timeout_s=3.0) as client, pytest.raises(DeadlineExceeded):
            client.scorers()
        assert time.monotonic() - began < 4.7  # and not 5.0


def test_both_kinds_of_client_watch_their_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    kinds: list[Any] = []
    for kind in (httpx.HTTPTransport, httpx.AsyncHTTPTransport):
        original = kind.__init__

        def record(self: Any, original: Any = original, **options: Any) -> None:
            kinds.append((type(self), options.get("socket_options")))
            original(self, **options)

        monkeypatch.setattr(kind, "__init__", record)
    Client().close()
    asyncio.run(AsyncClient().close())
    assert [kind for kind, options in kinds if options] == [
        httpx.HTTPTransport,
        httpx.AsyncHTTPTransport,
    ]
