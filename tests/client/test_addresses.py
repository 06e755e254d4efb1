"""A client that has several addresses of a service."""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fakes import web
from fakes.hang_up import hanging_up
from tokenreward_client import BadArgument, Client, ConnectionFailed
from tokenreward_client.addresses import AnyAddress
from tokenreward_client.connection import CONNECT_TIMEOUT_S
from tokenreward_client.flow import Send
from tokenreward_client.session import build_request

URLS = [httpx.URL(f"http://{host}:1") for host in "abc"]


def closed_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def at(edge: Any, monkeypatch: pytest.MonkeyPatch, *others: str) -> None:
    """From now on clients have other addresses before that of the service."""
    monkeypatch.setattr(edge, "url", [*others, edge.url])


def test_where_nobody_listens_costs_no_try_and_no_pause(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = edge.url.removeprefix("http://")
    at(edge, monkeypatch, closed_url(), closed_url())
    answers = score(items(3), settings={"max_retries": 0})
    assert [answer.score for answer in answers] == [0, 1, 2]
    assert edge.seen[0][1]["host"] == host


def test_a_connection_that_breaks_sends_the_next_try_elsewhere(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hanging_up() as (url, methods):
        edge.listing = None
        at(edge, monkeypatch, url)
        [answer] = score(items(1), settings={"max_retries": 1})
    assert answer.score == 0
    assert methods == [b"GET "]  # the listing went there, and nothing else did


@pytest.fixture(params=[404, 502])
def proxy(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """A proxy that does not reach the service: its address, and the methods of its requests."""
    asked: list[str] = []

    async def answer(http_request: Request) -> Response:
        asked.append(http_request.method)
        return Response("<html>", request.param, media_type="text/html")

    route = Route("/{path:path}", answer, methods=["GET", "POST"])
    with web.serving(Starlette(routes=[route])) as url:
        yield url, asked


def test_where_only_a_proxy_answers_the_next_try_goes_elsewhere(
    edge: Any, score: Any, items: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = proxy
    at(edge, monkeypatch, url)
    answers = score(items(2), settings={"max_retries": 0})
    assert [answer.score for answer in answers] == [0, 1]
    assert asked == ["GET"]  # the listing, without which the gateway will do


def test_an_address_where_the_service_refuses_is_kept(
    edge: Any, score: Any, items: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = proxy
    edge.listing = {"scorers": []}
    edge.script.append(edge.says(503, "overloaded", retryable=True))
    monkeypatch.setattr(edge, "url", [edge.url, url])
    assert [answer.score for answer in score(items(1))] == [0]
    assert asked == []


def test_a_request_of_which_something_was_sent_is_not_sent_elsewhere(edge: Any) -> None:
    with hanging_up() as (url, methods):
        urls = [httpx.URL(each) for each in (url, edge.url)]
        transport = AnyAddress(urls, httpx.HTTPTransport())
        with httpx.Client(transport=transport) as http, pytest.raises(httpx.TransportError):
            http.post(url)
    assert methods == [b"POST"]
    assert not edge.seen


async def test_nor_is_it_by_the_client_that_does_not_block(edge: Any) -> None:
    with hanging_up() as (url, methods):
        urls = [httpx.URL(each) for each in (url, edge.url)]
        transport = AnyAddress(urls, httpx.AsyncHTTPTransport())
        async with httpx.AsyncClient(transport=transport) as http:
            with pytest.raises(httpx.TransportError):
                await http.post(url)
    assert methods == [b"POST"]
    assert not edge.seen


def test_the_address_that_answers_is_kept(edge: Any, items: Any) -> None:
    with hanging_up() as (url, methods), Client([url, edge.url]) as client:
        for _ in range(3):
            client.score(items(1))
    assert len(methods) == 1


def test_all_addresses_that_nobody_answers_are_a_failed_connection(
    edge: Any, score: Any, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = closed_url()
    monkeypatch.setattr(edge, "url", [closed_url(), last])
    with pytest.raises(ConnectionFailed, match=f"no answer from {last}"):
        score(items(1), settings={"max_retries": 0})


def test_addresses_are_pickled_and_shown_without_passwords(edge: Any, items: Any) -> None:
    with Client([closed_url(), edge.url], max_retries=0) as client:
        copy = pickle.dumps(client)
    with pickle.loads(copy) as client:  # noqa: S301 - our own
        assert [answer.score for answer in client.score(items(1))] == [0]
    with Client(["http://me:hush@a:1", "http://me:hush@b:2"]) as client:
        assert repr(client) == "Client('http://a:1', 'http://b:2')"


def powered_off(live: str, seconds: float, seen: list[dict[str, float]]) -> httpx.MockTransport:
    """Connections to nodes of which only one is there: the others cost so many seconds each. `seen`
    gets the timeouts of each try, and as `header` what the service is told."""

    def connect(request: httpx.Request) -> httpx.Response:
        header = float(request.headers["x-request-timeout-seconds"])
        seen.append({**request.extensions["timeout"], "header": header})
        if request.url.host == live:
            return httpx.Response(200)
        time.sleep(seconds)
        raise httpx.ConnectTimeout(f"no way to {request.url.host}")

    return httpx.MockTransport(connect)


def send(transport: AnyAddress, timeout_s: float) -> httpx.Response:
    with httpx.Client(base_url=URLS[0], transport=transport) as http:
        return http.send(build_request(http, Send("/v1/rewards", b"{}", timeout_s)))


async def send_and_await(transport: AnyAddress, timeout_s: float) -> httpx.Response:
    async with httpx.AsyncClient(base_url=URLS[0], transport=transport) as http:
        return await http.send(build_request(http, Send("/v1/rewards", b"{}", timeout_s)))


def assert_only_the_rest_is_left(seen: list[dict[str, float]]) -> None:
    first, second = seen
    assert first["header"] == first["read"] == 60
    for name in ("header", "read", "write", "pool"):
        assert second[name] <= first[name] - 0.3
    assert second["connect"] == first["connect"] == CONNECT_TIMEOUT_S


def test_time_that_an_address_took_is_not_there_for_the_next() -> None:
    seen: list[dict[str, float]] = []
    assert send(AnyAddress(URLS, powered_off("b", 0.3, seen)), 60.0).status_code == 200
    assert_only_the_rest_is_left(seen)


async def test_nor_is_it_for_the_client_that_does_not_block() -> None:
    seen: list[dict[str, float]] = []
    answer = await send_and_await(AnyAddress(URLS, powered_off("b", 0.3, seen)), 60.0)
    assert answer.status_code == 200
    assert_only_the_rest_is_left(seen)


def test_addresses_that_do_not_answer_leave_time_for_the_one_that_does() -> None:
    seen: list[dict[str, float]] = []
    assert send(AnyAddress(URLS, powered_off("c", 0.0, seen)), 5.0).status_code == 200
    first, second, _ = seen
    assert first["connect"] + second["connect"] < 5


def test_request_whose_time_is_over_goes_to_no_further_address() -> None:
    seen: list[dict[str, float]] = []
    transport = AnyAddress(URLS, powered_off("b", 0.3, seen))
    with pytest.raises(httpx.ConnectTimeout, match="no way to a"):
        send(transport, 0.3)
    assert len(seen) == 1
    assert send(transport, 60.0).status_code == 200  # the next one begins where this one ended
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "there must be an address"),
        (["http://a", "https://a"], "host and port alone"),
        (["http://a/x", "http://b/y"], "host and port alone"),
        (["http://a", "http://u:p@b"], "host and port alone"),
        (["http://a", "b:1"], "must look like"),
        (["http://a", 3], "not a URL"),
    ],
)
def test_addresses_of_one_service_look_alike(urls: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        Client(urls)
