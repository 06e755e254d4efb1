"""Where the service is and how it is asked: what both clients share, whatever drives their flows.

It makes requests for httpx and sends none.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import httpx

from tokenreward_client.call import Asked, Batch, part_flow
from tokenreward_client.checked import checked_key, checked_timeout, checked_url
from tokenreward_client.errors import BadArgument
from tokenreward_client.flow import Attempts, Flow, Retry, Send, Together
from tokenreward_client.items import ItemLike
from tokenreward_client.listing import Routes, ScorerInfo
from tokenreward_client.media import WireName, wire_named
from tokenreward_client.rewards import Rewards
from tokenreward_client.window import Window

CONNECT_TIMEOUT_S = 10.0
# The listing only saves a hop: a gateway that keeps silent about it should not eat the deadline.
LISTING_TIMEOUT_S = 10.0


class Service(ABC):
    """What both clients know: where the service is and how to ask it.

    `max_request_items` and `max_request_bytes` are where a batch is cut into requests.
    """

    max_request_items: ClassVar[int] = 64
    max_request_bytes: ClassVar[int] = 2**20
    retry: ClassVar[Retry] = Retry()

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        max_retries: int = 10,
        max_concurrency: int = 16,
        wire: WireName = "json",
    ) -> None:
        self._base_url = checked_url(base_url)
        # httpx's Headers hide the key when they are printed.
        self._headers = httpx.Headers(
            {} if api_key is None else {"authorization": f"Bearer {checked_key(api_key)}"}
        )
        self._timeout_s = checked_timeout(timeout_s)
        if max_retries < 0:
            raise BadArgument(f"must be 0 or more, got {max_retries}", param="max_retries")
        if max_concurrency < 1:
            raise BadArgument(
                f"must be 1 or more, got {max_concurrency}",
                param="max_concurrency",
            )
        self._retry = dataclasses.replace(self.retry, max_retries=max_retries)
        self._max_concurrency = max_concurrency
        self._wire = wire_named(wire)
        # With those of the process that this one was forked off: to let one go would close what is
        # in use there.
        self._pools: list[object] = []
        self._begin()

    @abstractmethod
    def _open(self) -> object:
        """Make the connection pool, and return it."""

    def _begin(self) -> None:
        self._window = Window(self._max_concurrency, self._retry.clock)
        self._routes = Routes()
        self._pools.append(self._open())
        self._pid = os.getpid()

    def _is_at_home(self) -> bool:
        return self._pid == os.getpid()

    def _at_home(self) -> None:
        """In a process that was forked off, begin anew: of two that read from one connection, each
        may get the other's reply, and whoever holds a place in the window will never give it back
        here."""
        if not self._is_at_home():
            self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        _, _, key = self._headers.get("authorization", "").partition(" ")
        made_with: dict[str, Any] = {
            "base_url": str(self._base_url),
            "api_key": key or None,
            "timeout_s": self._timeout_s,
            "max_retries": self._retry.max_retries,
            "max_concurrency": self._max_concurrency,
            "wire": self._wire.name.lower(),
        }
        return partial(type(self), **made_with), ()

    def __repr__(self) -> str:
        key = ", api_key=<set>" if self._headers else ""
        return f"{type(self).__name__}({str(self._base_url.copy_with(userinfo=b''))!r}{key})"

    def _attempts(self, timeout_s: float, *, max_retries: int | None = None) -> Attempts:
        retry = (
            self._retry
            if max_retries is None
            else dataclasses.replace(self._retry, max_retries=max_retries)
        )
        return Attempts(retry, retry.clock() + timeout_s)

    def _scoring(
        self, items: Iterable[ItemLike], scorer: str | None, asked: Asked
    ) -> Flow[list[Rewards]]:
        self._at_home()
        batch = Batch(items, scorer, asked, self._wire)
        timeout_s = asked.get("timeout_s")
        whole = self._attempts(self._timeout_s if timeout_s is None else checked_timeout(timeout_s))
        if not batch.parcels:
            return []
        if batch.fingerprint is not None:
            yield from self._routes.agree(
                batch.names, batch.fingerprint, Attempts(self._retry, whole.deadline)
            )
        direct = None
        if batch.names_another is None:
            listing = self._attempts(min(whole.left_s() / 4, LISTING_TIMEOUT_S), max_retries=0)
            direct = yield from self._routes.direct(batch.names, listing)
        flows = []
        for part in batch.parts(max_items=self.max_request_items, max_bytes=self.max_request_bytes):
            road = self._routes.road(direct)
            flows.append(
                part_flow(batch, part, road, Attempts(self._retry, whole.deadline, self._window))
            )
        return batch.in_order((yield Together(flows)))

    def _listing(self) -> Flow[list[ScorerInfo]]:
        self._at_home()
        return self._routes.listing(self._attempts(self._timeout_s))

    def _http_options(self) -> dict[str, Any]:
        limits = httpx.Limits(max_keepalive_connections=self._max_concurrency)
        return {"base_url": self._base_url, "headers": self._headers, "limits": limits}


def request(http: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
    """The step as httpx sends it."""
    timeout = httpx.Timeout(step.timeout_s, connect=min(step.timeout_s, CONNECT_TIMEOUT_S))
    method = "GET" if step.body is None else "POST"
    return http.build_request(
        method, step.path, content=step.body, headers=step.headers, timeout=timeout
    )
