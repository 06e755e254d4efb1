"""Several addresses of one service, such as the nodes of a cluster: a request goes to the next one
if no connection can be made. It knows of a request only the deadline, and decides on no retry but
this.

A request is sent again only where none of it was sent. A connection that breaks later is the
caller's to judge, and so is an error that the service did not write; the next request goes to
another address then. All addresses share the time that the request has, which is its read timeout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import httpx

from tokenreward.wire import JSON_TYPE, MSGPACK_TYPE
from tokenreward.wire.paths import TIMEOUT_HEADER
from tokenreward_client.errors import BadArgument
from tokenreward_client.flow import LEAST_LEFT_S, deadline_text

_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
_MAX_PORT = 65535


class AnyAddress(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Sends requests to the address that answered last, until it does not.

    Args:
        urls: The addresses. Requests come with the first, and with a read timeout.
        connections: An httpx.HTTPTransport or httpx.AsyncHTTPTransport, which makes connections.
    """

    def __init__(self, urls: Sequence[httpx.URL], connections: object) -> None:
        self._urls = urls
        # httpx calls either the methods that block or the others, never both.
        self._connections: httpx.HTTPTransport = connections  # type: ignore[assignment]
        self._async_connections: httpx.AsyncHTTPTransport = connections  # type: ignore[assignment]
        self._place = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The response of the first address that can be reached. Raises httpx.TransportError."""
        for _ in self._tries(request):
            try:
                answer = self._connections.handle_request(request)
                self._leave_proxy(answer, request)
                return answer
            except httpx.TransportError as error:
                self._leave(request)
                if not isinstance(error, _NOTHING_SENT):
                    raise
                unreachable = error
        raise unreachable

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As `handle_request`."""
        for _ in self._tries(request):
            try:
                answer = await self._async_connections.handle_async_request(request)
                self._leave_proxy(answer, request)
                return answer
            except httpx.TransportError as error:
                self._leave(request)
                if not isinstance(error, _NOTHING_SENT):
                    raise
                unreachable = error
        raise unreachable

    def close(self) -> None:
        """Closes the connections."""
        self._connections.close()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._async_connections.aclose()

    def _tries(self, request: httpx.Request) -> Iterator[None]:
        """Gives the request one address after the other, until its time is over, and tells the
        service and the connections what is left of it."""
        first, began_at = self._place, time.monotonic()
        timeouts = request.extensions["timeout"]
        left_s = timeouts["read"]
        for number in range(len(self._urls)):
            url = self._urls[(first + number) % len(self._urls)]
            request.url = request.url.copy_with(host=url.host, port=url.port)
            request.headers["host"] = url.netloc.decode("ascii")
            request.headers[TIMEOUT_HEADER] = deadline_text(left_s)
            # Those that do not answer leave the others their share of the time.
            connect_s = min(timeouts["connect"], left_s / (len(self._urls) - number))
            request.extensions["timeout"] = httpx.Timeout(left_s, connect=connect_s).as_dict()
            yield
            left_s = timeouts["read"] - (time.monotonic() - began_at)
            if left_s < LEAST_LEFT_S:
                return

    def _leave_proxy(self, answer: httpx.Response, request: httpx.Request) -> None:
        """Other requests go elsewhere if this answer is an error of a proxy that does not reach the
        service, or of another service: our own errors are JSON or msgpack."""
        is_ours = answer.headers.get("content-type", "").startswith((JSON_TYPE, MSGPACK_TYPE))
        if answer.is_error and not is_ours:
            self._leave(request)

    def _leave(self, request: httpx.Request) -> None:
        """Other requests go elsewhere, unless one that failed before has seen to it."""
        url = self._urls[self._place]
        if (url.host, url.port) == (request.url.host, request.url.port):
            self._place = (self._place + 1) % len(self._urls)


def check_urls(base_url: str | Sequence[str]) -> list[httpx.URL]:
    """The addresses that a caller named, as URLs. Raises BadArgument."""
    texts = [base_url] if isinstance(base_url, str) else base_url
    try:
        urls = [httpx.URL(text) for text in texts]
    except (httpx.InvalidURL, TypeError):
        raise BadArgument("this is not a URL", param="base_url") from None
    if not urls:
        raise BadArgument("there must be an address", param="base_url")
    for url in urls:
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise BadArgument("must look like http://host:port, without a query", param="base_url")
        if url.port is not None and url.port > _MAX_PORT:
            message = f"must have a port up to {_MAX_PORT}, this one has {url.port}"
            raise BadArgument(message, param="base_url")
        if url.copy_with(host=urls[0].host, port=urls[0].port) != urls[0]:
            raise BadArgument("addresses may differ in host and port alone", param="base_url")
    return urls
