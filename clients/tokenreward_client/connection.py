"""How connections are made, how soon a dead one is noticed, and for how long a request that blocks
waits for its socket. It sends nothing, and knows of a request only its timeouts.

A node that loses its power or its cable closes no connection. A request on such a connection would
wait for its own deadline, which is minutes away, since honest work may wait in a queue for as long.
So the kernel watches each connection and not each request: while nothing is sent it asks the other
end every second whether it is there, and it gives the connection up when nothing was acknowledged
for five seconds. A live peer's kernel answers by itself, however long the service takes.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from tokenreward_client.addresses import AnyAddress
from tokenreward_client.flow import LEAST_LEFT_S

Pools = dict[asyncio.AbstractEventLoop, httpx.AsyncClient]
"""Connections by the event loop that made them, which no other one can use."""

CONNECT_TIMEOUT_S = 4.0
"""A lost first packet is sent again after 1 s and after 3 s."""

_IDLE_S = 2  # before the first question
_INTERVAL_S = 1
_NUM_UNANSWERED = 3  # where the kernel has no limit in milliseconds
# It also ends a connection whose peer acknowledges but takes no byte of a body for so long. A
# service reads bodies at once or refuses them.
_UNACKNOWLEDGED_MS = 5000
_OPTIONS = (
    ("TCP_KEEPIDLE", _IDLE_S),
    ("TCP_KEEPALIVE", _IDLE_S),  # its name on macOS
    ("TCP_KEEPINTVL", _INTERVAL_S),
    ("TCP_KEEPCNT", _NUM_UNANSWERED),
    ("TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MS),
)


def socket_options() -> list[tuple[int, int, int]]:
    """What each socket is set to, as far as this system has it."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _OPTIONS:
        number = getattr(socket, name, None)
        if number is not None:
            options.append((socket.IPPROTO_TCP, number, value))
    return options


def transport_options(
    urls: Sequence[httpx.URL], kind: type[Any], limits: httpx.Limits
) -> dict[str, Any]:
    """The arguments that make an httpx client's connections watched ones.

    A client with a transport of its own ignores the proxies that the environment names. Where there
    is one for a lone address, httpx makes the connections, to the proxy, as it always does. Several
    addresses are of machines nearby, and asked without a proxy.

    Args:
        urls: The addresses of the service.
        kind: httpx.HTTPTransport or httpx.AsyncHTTPTransport.
        limits: Of the connections.
    """
    proxies = getproxies()
    has_proxy = urls[0].scheme in proxies or "all" in proxies
    if len(urls) == 1 and has_proxy and not proxy_bypass(urls[0].host):
        return {"limits": limits}
    connections = kind(limits=limits, socket_options=socket_options())
    if len(urls) == 1:
        return {"transport": connections}
    return {"transport": AnyAddress(urls, connections)}


def share_time(request: httpx.Request) -> httpx.Request:
    """Has the stages of a request that blocks share its read timeout, and returns it.

    httpx gives the whole time to each of them: to write, to read the head of the reply and to read
    its body. Here each one gets what those before it left. What connects has a time of its own.
    """
    until = time.monotonic() + request.extensions["timeout"]["read"]

    def leave_the_rest(event: str, info: dict[str, Any]) -> None:
        left_s = max(LEAST_LEFT_S, until - time.monotonic())
        timeouts = request.extensions["timeout"]
        timeouts.update({stage: min(seconds, left_s) for stage, seconds in timeouts.items()})

    # httpcore calls it at the start of each stage that writes or reads, before it looks at that
    # stage's timeout.
    request.extensions["trace"] = leave_the_rest
    return request


def of_running_loop(pools: Pools, make: Callable[[], httpx.AsyncClient]) -> httpx.AsyncClient:
    """The connections of the event loop that runs, made by `make` if it has none."""
    loop = asyncio.get_running_loop()
    if loop not in pools:
        # A loop that is closed can close no connection any more: its sockets go with the pool.
        for other in list(pools):  # a copy: loops of other threads come and go
            if other.is_closed():
                pools.pop(other, None)
        pools[loop] = make()
    return pools[loop]
