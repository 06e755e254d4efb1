"""A client and the processes it lives in: forked off, pickled, interrupted."""

from __future__ import annotations

import copy
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fakes import web
from fakes.edge import Edge
from tokenreward_client import AsyncClient, Client
from tokenreward_client.threads import Stop, is_done_in_time, side_by_side
from tokenreward_client.window import Window

FORKED = """
import asyncio, os, sys
from tokenreward_client import AsyncClient, Client

def item(value):
    return {"prompt": "p", "response": f"r{value}", "spans": [[0, 1], [1, 1 + len(str(value))]]}

def ask(client, value):
    answer = client.score([item(value)])
    [answer] = answer if isinstance(client, Client) else asyncio.run(answer)
    assert answer.score == value, (answer.score, value)

kind, url = sys.argv[1:]
client = {"sync": Client, "async": AsyncClient}[kind](url)
ask(client, 1)
child = os.fork()
# Each `ask` of an AsyncClient has a loop of its own, and so another connection.
for value in range(50 if kind == "sync" else (child == 0)):
    ask(client, value + (200 if child else 100))
if child == 0:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""

INTERRUPTED = """
import sys
from tokenreward_client import Client

Client.max_request_items = 1
with Client(sys.argv[1], max_concurrency=int(sys.argv[2])) as client:
    client.score([("p", "r")] * 3)
"""


@pytest.fixture
def ports() -> Iterator[tuple[str, set[tuple[str, int]]]]:
    """A service, and which response was sent from which port."""
    edge, seen = Edge(), set()

    async def post(request: Request) -> Response:
        body = await request.json()
        assert request.client is not None
        seen.add((body["items"][0]["response"], request.client.port))
        return edge.ok(body)

    with web.serving(Starlette(routes=[Route("/v1/rewards", post, methods=["POST"])])) as url:
        yield url, seen


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_process_that_is_forked_off_has_connections_of_its_own(ports: Any, kind: str) -> None:
    url, seen = ports
    done = subprocess.run(
        [sys.executable, "-c", FORKED, kind, url], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    childs = {port for response, port in seen if 100 <= int(response[1:]) < 200}
    assert len(childs) == 1
    assert {port for _, port in seen} > childs
    assert len({port for _, port in seen}) == 2


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("again", [copy.copy, lambda client: pickle.loads(pickle.dumps(client))])  # noqa: S301
def test_a_copy_is_a_new_client_of_the_same_settings(kind: Any, again: Any) -> None:
    settings = {
        "base_url": "http://me:hush@host",
        "api_key": "sk-1",
        "timeout_s": 7.0,
        "max_retries": 3,
        "max_concurrency": 5,
        "wire": "msgpack",
    }
    client = kind(**settings)
    copied = again(client)
    assert type(copied) is kind
    assert copied is not client
    factory, arguments = copied.__reduce__()
    assert (factory.func, factory.keywords, arguments) == (kind, settings, ())
    assert again(kind()).__reduce__()[0].keywords["api_key"] is None


def test_a_copy_has_connections_and_a_window_of_its_own(edge: Any, items: Any) -> None:
    """It answers after the client has been closed, and while the client's only place is held."""
    client = Client(edge.url, max_concurrency=1)
    edge.delay_s = 3.0
    with copy.copy(client) as other, ThreadPoolExecutor() as threads:
        first = threads.submit(client.score, items(1))
        until = time.monotonic() + 20
        while not edge.in_flight:
            assert time.monotonic() < until
            time.sleep(0.01)
        edge.delay_s = 0.0
        began = time.monotonic()
        assert [answer.score for answer in other.score(items(1))] == [0]
        assert time.monotonic() - began < 2
        assert [answer.score for answer in first.result()] == [0]
        client.close()
        assert [answer.score for answer in other.score(items(1))] == [0]


def test_a_client_that_was_pickled_answers(edge: Any, items: Any) -> None:
    with Client(edge.url) as client, pickle.loads(pickle.dumps(client)) as other:  # noqa: S301
        assert [answer.score for answer in other.score(items(2))] == [0, 1]


@pytest.mark.parametrize("max_concurrency", [1, 3])
def test_ctrl_c_ends_the_process_though_no_answer_comes(max_concurrency: int) -> None:
    """With one place, two requests wait for it; with three, all are at the server."""
    posts = []

    def answer(connection: socket.socket) -> None:
        with connection:
            while request := connection.recv(10_000):
                if request.startswith(b"POST"):
                    posts.append(True)
                else:
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", INTERRUPTED, url, str(max_concurrency)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                until = time.monotonic() + 30
                while len(posts) < max_concurrency and time.monotonic() < until:
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                _, output = process.communicate(timeout=10)
            finally:
                process.kill()
        listener.shutdown(socket.SHUT_RDWR)
    assert len(posts) == max_concurrency
    assert "KeyboardInterrupt" in output


def test_whoever_waits_for_a_place_hears_the_stop() -> None:
    window, stop = Window(1), Stop()
    window.join(0)
    threading.Timer(0.1, stop.set_result, [None]).start()
    began = time.monotonic()
    assert not is_done_in_time(window.join(1), stop, 60.0)
    assert time.monotonic() - began < 10


def test_work_side_by_side_keeps_order_and_is_bounded() -> None:
    under_way, most = set(), 0
    lock = threading.Lock()

    def work(number: int) -> int:
        nonlocal most
        with lock:
            under_way.add(number)
            most = max(most, len(under_way))
        time.sleep(0.01)
        with lock:
            under_way.discard(number)
        return number

    works = [lambda number=number: work(number) for number in range(20)]
    assert side_by_side(works, Stop(), most=4) == list(range(20))
    assert 2 <= most <= 4
