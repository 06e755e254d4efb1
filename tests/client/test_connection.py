"""A connection whose other end is gone is given up within seconds, and honest work is not: with a
real service whose cable is pulled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import namespace
from tokenreward_client import AsyncClient, Client
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
    AsyncClient()
    assert [kind for kind, options in kinds if options] == [
        httpx.HTTPTransport,
        httpx.AsyncHTTPTransport,
    ]
