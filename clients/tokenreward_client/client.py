"""Client and AsyncClient: the two drivers that run the flows over httpx, and nothing else.

They know sockets, threads, tasks and clocks. `call`, `request` and `retry` decide, once for both,
what is sent, what is sent again, and what counts as an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from concurrent.futures import CancelledError
from functools import partial
from typing import Any, Self, TypeVar, Unpack, cast

import httpx

from tokenreward.wire.weights import DeploymentWeights, PushReply
from tokenreward_client.connection import Pools, of_running_loop, share_time
from tokenreward_client.flow import Flow, Send, Step
from tokenreward_client.items import ItemLike
from tokenreward_client.listing import ScorerInfo
from tokenreward_client.options import ScoreOptions
from tokenreward_client.rewards import Rewards
from tokenreward_client.session import Session, build_request
from tokenreward_client.threads import Stop, is_done_in_time, side_by_side, tasks_side_by_side
from tokenreward_client.weights import PushOptions

T = TypeVar("T")


class Client(Session):
    """Asks a tokenreward service for rewards, and blocks until they are there.

        with Client("http://127.0.0.1:8000") as client:
            for answer in client.score([("2+2?", "It is 4.")]):
                print(answer.rewards, answer.score)

    A client may be shared between threads, and used in a process that was forked off. Pickled, it
    comes out as a new client of the same settings; the pickle holds the API key in plain text.

    A call that needs several requests sends them from up to `max_concurrency` threads, which live
    as long as the call. A reply whose head or body comes in drips may outlast the deadline.

    Args:
        base_url: The service's address, or a list of some: if one cannot be reached, the next is.
        api_key: Sent as `Authorization: Bearer`, and never shown.
        timeout_s: The deadline of one call in seconds, retries and pauses included.
        max_retries: Tries of one request after the first one failed. A connection that is refused
            or breaks costs a try: with the default, a request lasts through about a minute of them.
            A reply that says `overloaded`, `loading` or `updating` costs none: the request waits at
            least as long as the service asks, and goes again until `timeout_s` has passed.
        max_concurrency: The most requests in flight at a time, over all calls on this client. There
            are fewer while the service is overloaded, and one more with each round of answers (see
            `window`).
        wire: "json" or "msgpack". Both carry the same numbers, msgpack in less time; it needs
            msgspec (`pip install "tokenreward[msgpack]"`).

    Raises:
        BadArgument: An argument is out of range, or msgspec is missing.
    """

    def score(
        self, items: Iterable[ItemLike], scorer: str | None = None, **options: Unpack[ScoreOptions]
    ) -> list[Rewards]:
        """Get the rewards of some responses: one number for each of their tokens, or spans.

            [answer] = client.score([{"prompt": "2+2?", "response": "It is 4."}], "attention_dense")
            answer.rewards  # float32, one per token
            answer.score    # the scorer's number for the whole response

        Large calls are cut into requests, and items that fail for a passing reason are sent again.

        Args:
            items: Any number of items, each a (prompt, response) pair, a dict with the fields of an
                item on the wire (`prompt`, `response`, `spans`, `mask`, ...), or an `Item`. A
                prompt is text, a list of chat messages, or token ids; a response is text or token
                ids. Ids may be lists or integer arrays of any library.
            scorer: The scorer's name; `endogenous` if neither `scorer` nor `scorers` is there.
            **options: What else is asked, each a keyword: `options`, `credit`, `scorers`,
                `combine`, `return_tokens`, `min_version`, `wait_for_version_s`, `on_error`,
                `timeout_s` and `fingerprint`, as ScoreOptions describes them.

        Returns:
            One Rewards per item, in the order of the items.

        Raises:
            BadArgument: An argument cannot be sent; nothing was sent.
            ItemFailed: An item has no reward, and `on_error` is "raise".
            ServerRefused: The service, or a proxy before it, refused a request.
            ConnectionFailed: A connection could not be made, or broke.
            DeadlineExceeded: The deadline passed.
            BadReply: A reply is not what it must be. With `on_error="return"` this and the three
                before it are raised only if no item was answered.
        """
        return self._drive(self._score_flow(items, scorer, options), Stop())

    def scorers(self, *, wait_for: Iterable[str] = ()) -> list[ScorerInfo]:
        """List the scorers that the service offers.

        Args:
            wait_for: Scorers whose deployment may still load. The service is asked again until all
                are listed, every deployment has answered, or the client's `timeout_s` is over.

        Raises:
            ServerRefused: The service, or a proxy before it, refused the request.
            ConnectionFailed: A connection could not be made, or broke.
            DeadlineExceeded: The deadline passed.
            BadReply: The reply is no list of scorers.
        """
        return self._drive(self._scorers_flow(wait_for), Stop())

    def update_weights(self, deployment: str, **push: Unpack[PushOptions]) -> PushReply:
        """Have a deployment serve other weights, and return once its replicas do.

            client.update_weights("rm", checkpoint="/runs/step-200", version=200, admin_key=key)

        All replicas read and check the weights before one of them changes. If one cannot serve
        them, nothing changes. The same call again changes nothing.

        Args:
            deployment: Its name.
            **push: `checkpoint`, `version` and `admin_key`; for a deployment that has them,
                `adapter` and `reference_checkpoint`; and `timeout_s`, as PushOptions describes.

        Returns:
            The version and, in `replicas`, what each replica serves now.

        Raises:
            BadArgument: An argument cannot be sent.
            ServerRefused: The version is not greater (`version_conflict`), the weights do not fit
                the model, or the key is no admin key.
            ConnectionFailed, DeadlineExceeded, BadReply: As `score`.
        """
        return self._drive(self._push_flow(deployment, push), Stop())

    def weights(self, deployment: str, admin_key: str) -> DeploymentWeights:
        """Show which weights were pushed to a deployment, which its settings declare, and what each
        replica serves. Raises as `update_weights`."""
        return self._drive(self._weights_flow(deployment, admin_key), Stop())

    def wait_ready(
        self,
        version: int | None = None,
        deployment: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Return once every deployment answers.

        Args:
            version: Also wait until the listing shows weights of this version or a greater one. It
                shows one replica of each deployment (see also `min_version`).
            deployment: The deployment that must have the version; by default all of them.
            timeout_s: The deadline in seconds, in place of the client's. Raises as `scorers`.
        """
        self._drive(self._ready_flow(version, deployment, timeout_s), Stop())

    def close(self) -> None:
        """Close the connections. A process that was forked off leaves them to its parent."""
        if self._is_at_home():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> object:
        self._http = httpx.Client(**self._http_options(httpx.HTTPTransport))
        return self._http

    def _drive(self, flow: Flow[T], stop: Stop) -> T:
        """Perform the steps of a flow until it returns, or until `stop` is done."""
        outcome: Any = None
        # Closing a flow that is not at its end lets it give its ticket back.
        with contextlib.closing(flow):
            while not stop.done():
                try:
                    step = flow.send(outcome)
                except StopIteration as end:
                    return cast(T, end.value)
                outcome = self._perform(step, stop)
        raise CancelledError

    def _perform(self, step: Step, stop: Stop) -> Any:
        match step:
            case Send():
                try:
                    return self._http.send(share_time(build_request(self._http, step)))
                except httpx.RequestError as error:
                    return error
            case list():
                if len(step) == 1:
                    # In the caller's own thread, which Ctrl-C reaches.
                    return [self._drive(step[0], stop)]
                works = [partial(self._drive, flow, stop) for flow in step]
                return side_by_side(works, stop, most=self._max_concurrency)
            case ticket, timeout_s:
                return is_done_in_time(ticket, stop, timeout_s)
            case pause_s:
                is_done_in_time(stop, stop, pause_s)


class AsyncClient(Session):
    """Asks a tokenreward service for rewards with `await`. Its arguments are those of `Client`.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            answers = await client.score([("2+2?", "It is 4.")])

    A client may be shared between event loops, each of which has connections of its own. It may be
    pickled, as `Client` may. Cancelling a call cancels its requests, and the server drops those of
    their items that still wait.
    """

    async def score(
        self, items: Iterable[ItemLike], scorer: str | None = None, **options: Unpack[ScoreOptions]
    ) -> list[Rewards]:
        """Get the rewards of some responses, as `Client.score` does."""
        return await self._drive(self._score_flow(items, scorer, options))

    async def scorers(self, *, wait_for: Iterable[str] = ()) -> list[ScorerInfo]:
        """List the scorers that the service offers, as `Client.scorers` does."""
        return await self._drive(self._scorers_flow(wait_for))

    async def update_weights(self, deployment: str, **push: Unpack[PushOptions]) -> PushReply:
        """Have a deployment serve other weights, as `Client.update_weights` does."""
        return await self._drive(self._push_flow(deployment, push))

    async def weights(self, deployment: str, admin_key: str) -> DeploymentWeights:
        """Show the weights of a deployment, as `Client.weights` does."""
        return await self._drive(self._weights_flow(deployment, admin_key))

    async def wait_ready(
        self,
        version: int | None = None,
        deployment: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Return once every deployment answers, as `Client.wait_ready` does."""
        await self._drive(self._ready_flow(version, deployment, timeout_s))

    async def close(self) -> None:
        """Close the connections of this event loop. A process that was forked off leaves them to
        its parent."""
        if self._is_at_home():
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _open(self) -> object:
        self._by_loop: Pools = {}
        return self._by_loop

    @property
    def _http(self) -> httpx.AsyncClient:
        def make() -> httpx.AsyncClient:
            return httpx.AsyncClient(**self._http_options(httpx.AsyncHTTPTransport))

        return of_running_loop(self._by_loop, make)

    async def _drive(self, flow: Flow[T]) -> T:
        """Perform the steps of a flow until it returns."""
        outcome: Any = None
        # Closing a flow that is not at its end lets it give its ticket back.
        with contextlib.closing(flow):
            while True:
                try:
                    step = flow.send(outcome)
                except StopIteration as end:
                    return cast(T, end.value)
                outcome = await self._perform(step)

    async def _perform(self, step: Step) -> Any:
        match step:
            case Send():
                return await self._send(step)
            case list():
                return await tasks_side_by_side([self._drive(flow) for flow in step])
            case ticket, timeout_s:
                done, _ = await asyncio.wait([asyncio.wrap_future(ticket)], timeout=timeout_s)
                return bool(done)
            case pause_s:
                await asyncio.sleep(pause_s)

    async def _send(self, step: Send) -> httpx.Response | httpx.RequestError:
        try:
            # httpx bounds each read of the socket; this bounds the whole reply.
            async with asyncio.timeout(step.timeout_s):
                http = self._http
                return await http.send(build_request(http, step))
        except TimeoutError:
            return httpx.ReadTimeout("the reply was not there in time")
        except httpx.RequestError as error:
            return error
