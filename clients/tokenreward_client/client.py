"""Client and AsyncClient: the two drivers that run the flows over httpx, and nothing else.

They know sockets, threads, tasks and clocks. What is sent, what is retried and what counts as an
answer is decided in `flow` and `batch`, once for both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Self, TypeVar, Unpack, cast

import httpx

from tokenreward_client.call import Asked
from tokenreward_client.flow import Flow, Sleep, Step, Together, Wait
from tokenreward_client.items import ItemLike
from tokenreward_client.listing import ScorerInfo
from tokenreward_client.rewards import Rewards
from tokenreward_client.session import Service, request
from tokenreward_client.threads import Stop, happens_s, side_by_side

T = TypeVar("T")


class Client(Service):
    """Asks the service for rewards, blocking. Safe to share between threads, and with processes
    that are forked off.

    It may be pickled: a new client of the same settings comes out. The API key is in the pickle,
    for all to read.

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

    A call that needs several requests sends them from up to `max_concurrency` threads that live as
    long as the call. Only between two reads of the socket can it see that the deadline has passed:
    a reply in drips may outlast it.

        with Client("http://127.0.0.1:8000") as client:
            for answer in client.score([("2+2?", "It is 4.")]):
                print(answer.rewards, answer.score)
    """

    def score(
        self, items: Iterable[ItemLike], scorer: str | None = None, **asked: Unpack[Asked]
    ) -> list[Rewards]:
        """One Rewards per item, in the caller's order; `scorer` is `endogenous` unless named,
        `asked` as in Asked.

        Items are wire Items, dicts of the same fields, or (prompt, response) pairs; ids may be
        lists or integer arrays.

        Raises BadArgument; ItemFailed, unless `on_error="return"`; ServerRefused, ConnectionFailed,
        DeadlineExceeded and BadReply, with `on_error="return"` only if no item was answered.
        """
        return self._drive(self._scoring(items, scorer, asked), Stop())

    def scorers(self) -> list[ScorerInfo]:
        """What the service offers. Raises ServerRefused, ConnectionFailed, DeadlineExceeded,
        BadReply."""
        return self._drive(self._listing(), Stop())

    def close(self) -> None:
        if self._is_at_home():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> object:
        self._http = httpx.Client(**self._http_options())
        return self._http

    def _drive(self, flow: Flow[T], stop: Stop) -> T:
        answer: Any = None
        with contextlib.closing(flow):
            while not stop.done():
                try:
                    step = flow.send(answer)
                except StopIteration as done:
                    return cast(T, done.value)
                answer = self._perform(step, stop)
        raise CancelledError

    def _perform(self, step: Step, stop: Stop) -> Any:
        if isinstance(step, Sleep):
            return happens_s(stop, stop, step.seconds)
        if isinstance(step, Together):
            return self._together(step, stop)
        if isinstance(step, Wait):
            return happens_s(step.ticket, stop, step.timeout_s)
        try:
            return self._http.send(request(self._http, step))
        except httpx.RequestError as error:
            return error

    def _together(self, step: Together, stop: Stop) -> list[Any]:
        if len(step.flows) == 1:
            return [self._drive(step.flows[0], stop)]
        works = [partial(self._drive, flow, stop) for flow in step.flows]
        return side_by_side(works, stop, most=self._max_concurrency)


class AsyncClient(Service):
    """Asks the service for rewards with `await`; made with the arguments of `Client`.

    Belongs to one event loop; may be pickled as `Client` may. Cancelling a call cancels its
    requests, and the server drops what still waits.

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
        if self._is_at_home():
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _open(self) -> object:
        self._http = httpx.AsyncClient(**self._http_options())
        return self._http

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
            return bool(
                (await asyncio.wait([asyncio.wrap_future(step.ticket)], timeout=step.timeout_s))[0]
            )
        try:
            async with asyncio.timeout(step.timeout_s):
                return await self._http.send(request(self._http, step))
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
