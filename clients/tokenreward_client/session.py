"""Session: how one service is asked, whatever drives the flows. It sends nothing itself."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import httpx

from tokenreward.wire.paths import REWARDS_PATH
from tokenreward.wire.weights import DeploymentWeights, PushReply
from tokenreward_client.addresses import check_urls
from tokenreward_client.call import Call, score_request
from tokenreward_client.connection import CONNECT_TIMEOUT_S, transport_options
from tokenreward_client.errors import BadArgument
from tokenreward_client.flow import Flow, Send
from tokenreward_client.items import ItemLike
from tokenreward_client.listing import Listing, ScorerInfo
from tokenreward_client.media import WireName, check_wire
from tokenreward_client.options import ScoreOptions
from tokenreward_client.retry import Attempts, Retry
from tokenreward_client.rewards import Rewards
from tokenreward_client.weights import PushOptions, push_weights, show_weights, wait_until_ready
from tokenreward_client.window import Window

# The listing only saves a hop: a gateway that keeps silent about it should not eat the deadline.
LISTING_TIMEOUT_S = 10.0
_API_KEY = re.compile(r"[!-~]+")


class Session(ABC):
    """A session with one service: its address and settings, the window that all requests go
    through, and the listing of its scorers. `Client` and `AsyncClient` say what its arguments mean.

    Attributes:
        max_request_items: The most items in one request.
        max_request_bytes: The most bytes of items in one request, unless a single item has more.
        retry: How long to pause between tries.
    """

    max_request_items: ClassVar[int] = 64
    max_request_bytes: ClassVar[int] = 2**20
    retry: ClassVar[Retry] = Retry()

    def __init__(
        self,
        base_url: str | Sequence[str] = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        max_retries: int = 10,
        max_concurrency: int = 16,
        wire: WireName = "json",
    ) -> None:
        self._urls = check_urls(base_url)
        self._headers = httpx.Headers()  # which hide the key when they are printed
        if api_key is not None:
            # The message never quotes the key: it may end up in a log.
            if not _API_KEY.fullmatch(api_key):
                raise BadArgument("must be printable ASCII without white space", param="api_key")
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout_s = _check_timeout(timeout_s)
        for name, value, least in (
            ("max_retries", max_retries, 0),
            ("max_concurrency", max_concurrency, 1),
        ):
            if value < least:
                raise BadArgument(f"must be {least} or more, got {value}", param=name)
        self._retry = dataclasses.replace(self.retry, max_retries=max_retries)
        self._max_concurrency = max_concurrency
        check_wire(wire)
        self._wire = wire
        # A forked process opens a pool of its own and leaves the one that it inherited alone. Here
        # both stay referenced: collected, the inherited pool would close the sockets that the
        # parent process still uses.
        self._pools: list[object] = []
        self._begin()

    @abstractmethod
    def _open(self) -> object:
        """Make the connection pool, and return it."""

    def _begin(self) -> None:
        self._window = Window(self._max_concurrency, self._retry.clock)
        self._scorers = Listing()
        self._pools.append(self._open())
        self._pid = os.getpid()

    def _is_at_home(self) -> bool:
        """Whether this process opened the connections, and not the one that forked it."""
        return self._pid == os.getpid()

    def _begin_after_fork(self) -> None:
        """Begin anew in a process that was forked off.

        Two processes that read from one connection may each get the other's reply. And a place in
        the window that another thread held at the fork is never given back here.
        """
        if not self._is_at_home():
            self._begin()

    def __reduce__(self) -> tuple[Any, ...]:
        _, _, api_key = self._headers.get("authorization", "").partition(" ")
        urls = [str(url) for url in self._urls]
        settings: dict[str, Any] = {
            "base_url": urls if len(urls) > 1 else urls[0],
            "api_key": api_key or None,
            "timeout_s": self._timeout_s,
            "max_retries": self._retry.max_retries,
            "max_concurrency": self._max_concurrency,
            "wire": self._wire,
        }
        return partial(type(self), **settings), ()

    def __repr__(self) -> str:
        key = ", api_key=<set>" if self._headers else ""
        # The user part of a URL may hold a password.
        urls = ", ".join(repr(str(url.copy_with(userinfo=b""))) for url in self._urls)
        return f"{type(self).__name__}({urls}{key})"

    def _score_flow(
        self, items: Iterable[ItemLike], scorer: str | None, options: ScoreOptions
    ) -> Flow[list[Rewards]]:
        """The flow of one `score` call."""
        self._begin_after_fork()
        call = Call(items, scorer, options, self._wire)
        timeout_s = options.get("timeout_s")
        if timeout_s is None:
            timeout_s = self._timeout_s
        deadline = self._retry.clock() + _check_timeout(timeout_s)
        if not call.contents:
            return []
        whole = Attempts(self._retry, deadline)
        if call.fingerprint is not None:
            yield from self._scorers.require_tokenizer(call.names, call.fingerprint, whole)
        direct = None
        if not call.dependencies:
            # One try, and a quarter of the time at most: without a listing the gateway will do.
            one_try = dataclasses.replace(self._retry, max_retries=0)
            listing_s = min(whole.left_s() / 4, LISTING_TIMEOUT_S)
            direct = yield from self._scorers.direct_path(
                call.names, Attempts(one_try, self._retry.clock() + listing_s)
            )
        flows = [
            score_request(
                call,
                positions,
                Attempts(self._retry, deadline, self._window),
                direct or REWARDS_PATH,
                self._scorers.forget,
            )
            for positions in call.split(self.max_request_items, self.max_request_bytes)
        ]
        return call.collect((yield flows))

    def _scorers_flow(self, wait_for: Iterable[str]) -> Flow[list[ScorerInfo]]:
        """The flow of one `scorers` call."""
        if isinstance(wait_for, str):  # whose letters would be waited for, and never come
            raise BadArgument(
                "must be a list of names; put a single one in a list", param="wait_for"
            )
        return self._scorers.refresh_until(list(wait_for), self._attempts(None))

    def _push_flow(self, deployment: str, options: PushOptions) -> Flow[PushReply]:
        """The flow of one `update_weights` call."""
        return push_weights(deployment, options, self._attempts(options.get("timeout_s")))

    def _weights_flow(self, deployment: str, admin_key: str) -> Flow[DeploymentWeights]:
        """The flow of one `weights` call."""
        return show_weights(deployment, admin_key, self._attempts(None))

    def _ready_flow(
        self, version: int | None, deployment: str | None, timeout_s: float | None
    ) -> Flow[None]:
        """The flow of one `wait_ready` call."""
        attempts = self._attempts(timeout_s)
        return wait_until_ready(self._scorers, attempts, version, deployment)

    def _attempts(self, timeout_s: float | None) -> Attempts:
        """The tries of a call that sends one request at a time."""
        self._begin_after_fork()
        if timeout_s is None:
            timeout_s = self._timeout_s
        return Attempts(self._retry, self._retry.clock() + _check_timeout(timeout_s))

    def _http_options(self, transport: type[Any]) -> dict[str, Any]:
        limits = httpx.Limits(max_keepalive_connections=self._max_concurrency)
        connections = transport_options(self._urls, transport, limits)
        return {"base_url": self._urls[0], "headers": self._headers, **connections}


def build_request(http: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
    """The step as httpx sends it."""
    method = "GET" if step.body is None else "POST"
    timeout = httpx.Timeout(step.timeout_s, connect=min(step.timeout_s, CONNECT_TIMEOUT_S))
    request = http.build_request(
        method, step.path, content=step.body, headers=step.headers, timeout=timeout
    )
    if "authorization" in request.headers:
        # httpx would put the user of the URL, who goes in the same header, in the place of the key.
        request.url = request.url.copy_with(userinfo=b"")
    return request


def _check_timeout(timeout_s: float) -> float:
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        message = f"must be a positive number of seconds, got {timeout_s}"
        raise BadArgument(message, param="timeout_s")
    return timeout_s
