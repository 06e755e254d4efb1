"""Client and AsyncClient: the two drivers that run the flows over httpx, and nothing else.

They know sockets, threads, tasks and clocks. What is sent, what is retried and what counts as an answer is decided in
`flow` and `batch`, once for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from typing import Any, ClassVar, Self, TypeVar, Unpack, cast

import httpx

from tokenreward_client.batch import Asked, Batch, part_flow
from tokenreward_client.checked import checked_key, checked_timeout, checked_url
from tokenreward_client.errors import BadArgument
from tokenreward_client.flow import Attempts, Flow, Retry, Send, Sleep, Step, Together, Wait
from tokenreward_client.items import ItemLike
from tokenreward_client.rewards import Rewards
from tokenreward_client.routes import Routes, ScorerInfo
from tokenreward_client.window import Window
from tokenreward_client.wires import WireName, wire_named

T = TypeVar("T")
CONNECT_TIMEOUT_S = 10.0
# The listing only saves a hop: a gateway that keeps silent about it should not eat the deadline.
LISTING_TIMEOUT_S = 10.0
PARTING_S = 1.0


class _Service(ABC):
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
        self._headers = httpx.Headers({} if api_key is None else {"authorization": f"Bearer {checked_key(api_key)}"})
        self._timeout_s = checked_timeout(timeout_s)
        if max_retries < 0:
            raise BadArgument(f"`max_retries` must be 0 or more, got {max_retries}", param="max_retries")
        if max_concurrency < 1:
            raise BadArgument(f"`max_concurrency` must be 1 or more, got {max_concurrency}", param="max_concurrency")
        self._retry = dataclasses.replace(self.retry, max_retries=max_retries)
        self._max_concurrency = max_concurrency
        self._window = Window(max_concurrency, self._retry.clock)
        self._wire = wire_named(wire)
        self._routes = Routes()
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make the connection pool."""

    def __repr__(self) -> str:
        key = ", api_key=<set>" if self._headers else ""
        return f"{type(self).__name__}({str(self._base_url.copy_with(userinfo=b''))!r}{key})"

    def _attempts(self, timeout_s: float, *, max_retries: int | None = None) -> Attempts:
        retry = self._retry if max_retries is None else dataclasses.replace(self._retry, max_retries=max_retries)
        return Attempts(retry, retry.clock() + timeout_s)

    def _scoring(self, items: Iterable[ItemLike], scorer: str | None, asked: Asked) -> Flow[list[Rewards]]:
        batch = Batch(items, scorer, asked, self._wire)
        timeout_s = asked.get("timeout_s")
        whole = self._attempts(self._timeout_s if timeout_s is None else checked_timeout(timeout_s))
        if not batch.parcels:
            return []
        if batch.fingerprint is not None:
            yield from self._routes.agree(batch.names, batch.fingerprint, Attempts(self._retry, whole.deadline))
        direct = None
        if batch.names_another is None:
            listing = self._attempts(min(whole.left_s(), LISTING_TIMEOUT_S), max_retries=0)
            direct = yield from self._routes.direct(batch.names, listing)
        flows = []
        for part in batch.parts(max_items=self.max_request_items, max_bytes=self.max_request_bytes):
            road = self._routes.road(direct)
            flows.append(part_flow(batch, part, road, Attempts(self._retry, whole.deadline, self._window)))
        return batch.in_order((yield Together(flows)))

    def _listing(self) -> Flow[list[ScorerInfo]]:
        return self._routes.listing(self._attempts(self._timeout_s))

    def _http_options(self) -> dict[str, Any]:
        limits = httpx.Limits(max_keepalive_connections=self._max_concurrency)
        return {"base_url": self._base_url, "headers": self._headers, "limits": limits}


class Client(_Service):
    """Asks the service for rewards, blocking. Safe to share between threads.

    Args:
        base_url: of the gateway.
        api_key: sent as `Authorization: Bearer`; never shown.
        timeout_s: deadline of one `score` call in seconds, its retries and pauses included.
        max_retries: tries after the first, per request. Being told `overloaded`, `loading` or `updating` costs none:
            the request waits as long as the service asks, or longer, and goes again until `timeout_s` has passed. A
            connection that is refused or breaks costs one: with the default they last for about a minute.
        max_concurrency: requests in flight at a time, over all calls on this client; fewer while the service is
            overloaded (see `window`), and one more with each round of answers.
        wire: "json", or "msgpack", the same numbers in less time; needs msgspec (`tokenreward[msgpack]`).

    Raises BadArgument.

    A call that needs several requests sends them from up to `max_concurrency` threads that live as long as the call.
    Only between two reads of the socket can it see that the deadline has passed: a reply in drips may outlast it.

        with Client("http://127.0.0.1:8000") as client:
            for answer in client.score([("2+2?", "It is 4.")]):
                print(answer.rewards, answer.score)
    """

    def score(self, items: Iterable[ItemLike], scorer: str | None = None, **asked: Unpack[Asked]) -> list[Rewards]:
        """One Rewards per item, in the caller's order; `scorer` is `endogenous` unless named, `asked` as in Asked.

        Items are wire Items, dicts of the same fields, or (prompt, response) pairs; ids may be lists or integer arrays.

        Raises BadArgument; ItemFailed, unless `on_error="return"`; ServerRefused, ConnectionFailed, DeadlineExceeded
        and BadReply, with `on_error="return"` only if no item was answered.
        """
        return self._drive(self._scoring(items, scorer, asked), threading.Event())

    def scorers(self) -> list[ScorerInfo]:
        """What the service offers. Raises ServerRefused, ConnectionFailed, DeadlineExceeded, BadReply."""
        return self._drive(self._listing(), threading.Event())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> None:
        self._http = httpx.Client(**self._http_options())

    def _drive(self, flow: Flow[T], stop: threading.Event) -> T:
        answer: Any = None
        with contextlib.closing(flow):
            while not stop.is_set():
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    return cast(T, done.value)
                answer = self._perform(step, stop)
        raise CancelledError

    def _perform(self, step: Step, stop: threading.Event) -> Any:
        if isinstance(step, Sleep):
            return stop.wait(step.seconds)
        if isinstance(step, Together):
            return self._together(step, stop)
        if isinstance(step, Wait):
            return bool(wait([step.ticket], min(step.timeout_s, threading.TIMEOUT_MAX)).done)
        try:
            return self._http.send(_request(self._http, step))
        except httpx.RequestError as error:
            return error

    def _together(self, step: Together, stop: threading.Event) -> list[Any]:
        if len(step.flows) == 1:
            return [self._drive(step.flows[0], stop)]
        pool = ThreadPoolExecutor(min(len(step.flows), self._max_concurrency), thread_name_prefix="tokenreward")
        futures = [pool.submit(self._drive, flow, stop) for flow in step.flows]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            # Nothing more is sent. A request in flight cannot be called back: it gets a moment to end, no more.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            wait(futures, timeout=PARTING_S)
            raise
        finally:
            pool.shutdown(wait=False)


class AsyncClient(_Service):
    """Asks the service for rewards with `await`; made with the arguments of `Client`.

    Belongs to one event loop. Cancelling a call cancels its requests, and the server drops what still waits.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            answers = await client.score([("2+2?", "It is 4.")])
    """

    async def score(
        self, items: Iterable[ItemLike], scorer: str | None = None, **asked: Unpack[Asked]
    ) -> list[Rewards]:
        """As `Client.score`."""
        return await self._drive(self._scoring(items, scorer, asked))

    async def scorers(self) -> list[ScorerInfo]:
        """As `Client.scorers`."""
        return await self._drive(self._listing())

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _open(self) -> None:
        self._http = httpx.AsyncClient(**self._http_options())

    async def _drive(self, flow: Flow[T]) -> T:
        answer: Any = None
        with contextlib.closing(flow):
            while True:
                try:
                    step = flow.send(answer)
                except StopIteration as stop:
                    return cast(T, stop.value)
                answer = await self._perform(step)

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Sleep):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Together):
            return await self._together(step)
        if isinstance(step, Wait):
            return bool((await asyncio.wait([asyncio.wrap_future(step.ticket)], timeout=step.timeout_s))[0])
        try:
            async with asyncio.timeout(step.timeout_s):
                return await self._http.send(_request(self._http, step))
        except TimeoutError:
            return httpx.ReadTimeout("the reply was not there in time")
        except httpx.RequestError as error:
            return error

    async def _together(self, step: Together) -> list[Any]:
        tasks = [asyncio.ensure_future(self._drive(flow)) for flow in step.flows]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise


def _request(http: httpx.Client | httpx.AsyncClient, step: Send) -> httpx.Request:
    timeout = httpx.Timeout(step.timeout_s, connect=min(step.timeout_s, CONNECT_TIMEOUT_S))
    method = "GET" if step.body is None else "POST"
    return http.build_request(method, step.path, content=step.body, headers=step.headers, timeout=timeout)
