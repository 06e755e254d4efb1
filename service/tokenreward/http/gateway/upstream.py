"""The deployments as the gateway sees them: whether they are ready, what they list, and the calls
of one request to them.

Whatever comes back becomes an answer of ours or an error of ours. It knows paths, headers and
deadlines, and nothing of what the bodies say.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import httpx
from fastapi import Response
from pydantic import BaseModel, TypeAdapter

from tokenreward.errors import DeadlineExceededError, InternalError, Loading
from tokenreward.http.gateway.upstream_answers import (
    UpstreamRefusal,
    foreign_failure,
    own_answer,
    read_body,
)
from tokenreward.http.held_requests import HeldRequests
from tokenreward.wire.media import JSON, Media
from tokenreward.wire.paths import (
    CALLER_HEADER,
    HOLD_HEADER,
    REQUEST_ID_HEADER,
    REWARDS_PATH,
    SCORERS_PATH,
    TIMEOUT_HEADER,
    deployment_prefix,
)

HasReady = Callable[[str], Coroutine[Any, Any, bool]]

LISTING_S = 3.0  # in which a deployment that is well lists its scorers
_READY_STANDS_S = 1.0


class ListedScorer(BaseModel):
    """A scorer as its deployment lists it, as far as the gateway needs it.

    Attributes:
        name: The name that requests use.
        tokenizer: Equal to another scorer's if equal ids are equal tokens.
        version: The version of the deployment's weights when it listed this.
        log_probs_options: The options under which its values are log-probabilities, if it has such.
    """

    name: str
    tokenizer: str
    version: int | None = None
    log_probs_options: dict[str, Any] | None = None


_SCORERS = TypeAdapter(list[ListedScorer])


def is_old(listing: Mapping[str, ListedScorer], version: int | None) -> bool:
    """Whether a listing is of other weights than those of this version."""
    return version is not None and any(
        entry.version not in (None, version) for entry in listing.values()
    )


class Upstreams:
    """The deployments behind the gateway.

    Args:
        client: Speaks to the service's own address.
        has_ready: Whether a deployment has a replica that is loaded and healthy.

    Attributes:
        listings: What each deployment lists, by its scorers' names. It is kept until a reply shows
            another version of the weights, or until the deployment fails to answer.
        lines: The requests that are held for each deployment.
    """

    def __init__(self, client: httpx.AsyncClient, has_ready: HasReady) -> None:
        self.client = client
        self.listings: dict[str, Mapping[str, ListedScorer]] = {}
        self.lines = defaultdict[str, HeldRequests](HeldRequests)
        self._has_ready = has_ready
        self._readiness: dict[str, tuple[float, asyncio.Future[bool]]] = {}
        self._trusted: set[str] = set()
        self._checks: dict[str, asyncio.Future[None]] = {}

    async def is_ready(self, deployment: str) -> bool:
        """Whether it has a replica that could answer; the answer stands for a second."""
        began, asking = self._readiness.get(deployment, (0.0, None))
        if asking is None or (asking.done() and time.monotonic() - began > _READY_STANDS_S):
            asking = asyncio.ensure_future(self._has_ready(deployment))
            self._readiness[deployment] = (time.monotonic(), asking)
        return await asyncio.shield(asking)

    async def missing(self, deployments: Sequence[str]) -> list[str]:
        """Those of `deployments` that have no replica ready now."""
        ready = await asyncio.gather(*(self.is_ready(name) for name in deployments))
        return [name for name, is_ready in zip(deployments, ready, strict=True) if not is_ready]

    async def expect_ready(self, deployment: str) -> None:
        """Raises Loading if it has no replica ready. It is asked until it has had one, and again
        once it has failed to answer.

        Ray's proxy holds requests for a deployment without replicas until their deadline. We answer
        at once instead.
        """
        if deployment in self._trusted:
            return
        if not await self.is_ready(deployment):
            raise Loading(f"`{deployment}` is loading its weights", retry_after_s=2)
        self._trusted.add(deployment)

    def distrust(self, deployment: str) -> None:
        """It failed to answer: the next request asks whether it is ready, and what it lists."""
        self._trusted.discard(deployment)
        self.listings.pop(deployment, None)

    def doubt(self, deployment: str) -> None:
        """It did not answer before a caller's deadline.

        The deadline may have been too short. So other requests are sent there, and meanwhile we ask
        whether it is ready: Ray's proxy would hold all of them if its last replica died.
        """
        check = self._checks.get(deployment)
        if check is None or check.done():
            self._checks[deployment] = asyncio.ensure_future(self._check(deployment))

    async def _check(self, deployment: str) -> None:
        if not await self.is_ready(deployment):
            self.distrust(deployment)


class UpstreamCall:
    """One request's calls to the deployments.

    Args:
        upstreams: The deployments.
        headers: The headers that it travels with; its id is among them.
        limit_s: Seconds that all of its calls may take together.
        hold: Called with the number of bytes that arrive, and by those who make bodies to post. It
            raises Overloaded when there is no room for them.
        sends: The media of the bodies that it posts.
        wants: The media of the answers.

    Attributes:
        give_up_at: Until when, by time.monotonic, calls are held that a deployment refuses with a
            503. Replicas are told to hold none: from here a request can go to any of them.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        headers: Mapping[str, str],
        limit_s: float,
        hold: Callable[[int], None],
        sends: Media = JSON,
        wants: Media = JSON,
    ) -> None:
        self._upstreams = upstreams
        self.sends = sends
        self.hold = hold
        self._headers = {**headers, "accept": wants.name, HOLD_HEADER: "0"}
        self.give_up_at = -math.inf
        self._deadline = time.monotonic() + limit_s

    def with_hold(self, hold: Callable[[int], None]) -> UpstreamCall:
        """The same request's calls, whose bytes are held by another `hold`."""
        call = copy.copy(self)
        call.hold = hold
        return call

    @property
    def request_id(self) -> str:
        """The id of the caller's request."""
        return self._headers[REQUEST_ID_HEADER]

    @property
    def left_s(self) -> float:
        """Seconds to the deadline."""
        return self._deadline - time.monotonic()

    async def post(self, deployment: str, body: bytes, *, path: str = REWARDS_PATH) -> Response:
        """The deployment's answer to a request for rewards; its refusals are answers too. While it
        is full or loads, the request is held. Raises Loading, DeadlineExceededError and
        InternalError if there is no answer, and Overloaded if there is no room for it here."""
        return await self._held(deployment, "POST", path, body)

    async def _held(
        self, deployment: str, method: str, path: str, body: bytes | None = None
    ) -> Response:
        return await self._upstreams.lines[deployment].hold(
            partial(self._ask, deployment, method, path, body),
            give_up_at=self.give_up_at,
            caller=self._headers.get(CALLER_HEADER, ""),
            size=len(body or b""),
            status_of=attrgetter("status_code"),
        )

    async def list_scorers(self, deployment: str) -> list[dict[str, Any]]:
        """The entries of its `GET /v1/scorers`, which are also kept.

        Raises:
            RequestError: The deployment refuses, or there is no answer (as `post`).
        """
        answer = await self._held(deployment, "GET", SCORERS_PATH)
        if answer.status_code != 200:
            raise UpstreamRefusal(answer)
        try:
            entries: list[dict[str, Any]] = read_body(answer)["scorers"]
            scorers = _SCORERS.validate_python(entries)
        except (ValueError, TypeError, KeyError):
            raise InternalError(
                f"`{deployment}` answered 200 with a body that lists no scorers"
            ) from None
        self._upstreams.listings[deployment] = {entry.name: entry for entry in scorers}
        return entries

    async def listing(self, deployment: str) -> Mapping[str, ListedScorer]:
        """Its scorers by name, as it lists them: once, and anew only when they may have changed.
        Raises RequestError."""
        if deployment not in self._upstreams.listings:
            await self.list_scorers(deployment)
        return self._upstreams.listings[deployment]

    def forget_old_listing(self, deployment: str, version: int | None) -> None:
        """Forgets what a deployment lists if a reply of its weights has another version."""
        if is_old(self._upstreams.listings.get(deployment, {}), version):
            del self._upstreams.listings[deployment]

    async def _ask(
        self, deployment: str, method: str, path: str, body: bytes | None = None
    ) -> Response:
        """One attempt. If it fails, what it held is given back: another one may follow."""
        chunks: list[bytes] = []
        answer: Response | None = None
        try:
            answer = await self._send(deployment, method, path, body, chunks)
            return answer
        finally:
            if answer is None or answer.status_code >= 500:
                self.hold(-sum(map(len, chunks)))

    async def _send(
        self, deployment: str, method: str, path: str, body: bytes | None, chunks: list[bytes]
    ) -> Response:
        """Sends a request. The pieces of its answer that are held are put into `chunks`."""
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceededError("the deadline passed before the request could be forwarded")
        try:
            async with asyncio.timeout(left_s):
                await self._upstreams.expect_ready(deployment)
                headers = {
                    **self._headers,
                    "content-type": self.sends.name,
                    TIMEOUT_HEADER: f"{self.left_s:.6f}",
                }
                url = deployment_prefix(deployment) + path
                async with self._upstreams.client.stream(
                    method, url, content=body, headers=headers
                ) as response:
                    async for chunk in response.aiter_bytes():
                        self.hold(len(chunk))
                        chunks.append(chunk)
        except TimeoutError:
            self._upstreams.doubt(deployment)
            raise DeadlineExceededError(
                f"`{deployment}` did not answer before the deadline"
            ) from None
        except httpx.ConnectError:  # nothing was sent: a proxy that starts again, for example
            self._upstreams.distrust(deployment)
            raise Loading(f"`{deployment}` cannot be reached", retry_after_s=1) from None
        except httpx.TransportError as error:
            self._upstreams.distrust(deployment)
            reason = type(error).__name__
            raise InternalError(f"the connection to `{deployment}` broke ({reason})") from None
        # The stream that the response was read from holds the response, and with it both bodies.
        # Without this cycle they go with the answer, and not with the next search for garbage.
        response.stream = httpx.ByteStream(b"")
        answer = own_answer(response, b"".join(chunks))
        if answer is not None:
            return answer
        failure = foreign_failure(deployment, response.status_code)
        if isinstance(failure, DeadlineExceededError):
            self._upstreams.doubt(deployment)
        else:
            self._upstreams.distrust(deployment)
        raise failure
