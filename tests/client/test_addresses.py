"""A client that has several addresses of a service."""

from __future__ import annotations

import pickle
import socket
from typing import Any

import httpx
import pytest

from fakes.hang_up import hanging_up
from tokenreward_client import BadArgument, Client, ConnectionFailed
from tokenreward_client.addresses import AnyAddress


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
