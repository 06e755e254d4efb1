"""One deployment seen from the front: forwards a body over HTTP and answers with our error body
whatever came back.

It knows paths, headers and deadlines, and nothing of what the bodies say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel

from tokenreward.errors import DeadlineExceeded, InternalError, Loading, RequestError
from tokenreward.wire.media import JSON, MSGPACK, Media
from tokenreward.wire.paths import (
    REQUEST_ID_HEADER,
    REWARDS_PATH,
    SCORERS_PATH,
    TIMEOUT_HEADER,
    deployment_prefix,
)

Gather = Callable[[], Awaitable[Mapping[str, Mapping[str, Any]]]]
HasReady = Callable[[str], Coroutine[Any, Any, bool]]

_READY_STANDS_S = 1.0
_PASSED_ON = ("content-type", "retry-after")


@dataclass(frozen=True, slots=True)
class Answer:
    """A deployment's answer, as it came."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def media(self) -> Media:
        """What the body is written in."""
        return MSGPACK if self.headers["content-type"].startswith(MSGPACK.name) else JSON


class _Entry(BaseModel):
    name: str
    tokenizer: str


class _Listing(BaseModel):
    """As much of a listing as the front itself reads."""

    scorers: list[_Entry]


class Upstreams:
    """The deployments behind the front. `has_ready` says whether one has a replica that is loaded
    and healthy."""

    def __init__(self, client: httpx.AsyncClient, has_ready: HasReady) -> None:
        self.client = client
        self._has_ready = has_ready
        self._asked: dict[str, tuple[float, asyncio.Future[bool]]] = {}
        self._trusted: set[str] = set()

    async def is_ready(self, deployment: str) -> bool:
        """Whether it has a replica that could answer; the answer stands for a second."""
        asked_at, asking = self._asked.get(deployment, (0.0, None))
        if asking is None or (asking.done() and time.monotonic() - asked_at > _READY_STANDS_S):
            asking = asyncio.ensure_future(self._has_ready(deployment))
            self._asked[deployment] = (time.monotonic(), asking)
        return await asyncio.shield(asking)

    async def missing(self, deployments: Sequence[str]) -> list[str]:
        """Those of `deployments` that have no replica ready now."""
        ready = await asyncio.gather(*(self.is_ready(name) for name in deployments))
        return [name for name, is_ready in zip(deployments, ready, strict=True) if not is_ready]

    async def expect_ready(self, deployment: str) -> None:
        """Raises Loading if it has no replica ready; it is asked only until it is, and whenever it
        failed to answer.

        Ray's proxy holds requests for a deployment without replicas until their deadline; we answer
        at once instead.
        """
        if deployment in self._trusted:
            return
        if not await self.is_ready(deployment):
            raise Loading(f"`{deployment}` is loading its weights", retry_after_s=2)
        self._trusted.add(deployment)

    def distrust(self, deployment: str) -> None:
        """It failed to answer: ask before the next request goes there."""
        self._trusted.discard(deployment)


class Passage:
    """One request's way to the deployments: the headers it travels with, the time it has left, and
    the media in which it `sends` bodies and `wants` answers."""

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        headers: Mapping[str, str],
        limit_s: float,
        sends: Media,
        wants: Media,
    ) -> None:
        self._upstreams = upstreams
        self.sends = sends
        self.wants = wants
        self._headers = {**headers, "accept": wants.name}
        self._deadline = time.monotonic() + limit_s

    @property
    def request_id(self) -> str:
        """What the caller's request is called."""
        return self._headers[REQUEST_ID_HEADER]

    @property
    def left_s(self) -> float:
        """Seconds to the deadline."""
        return self._deadline - time.monotonic()

    async def post(self, deployment: str, body: bytes) -> Answer:
        """The deployment's answer to `POST /v1/rewards`; its refusals are answers too.

        Raises Loading, DeadlineExceeded, InternalError.
        """
        return await self._ask(deployment, "POST", REWARDS_PATH, body=body)

    async def scorers(self, deployment: str) -> list[dict[str, Any]]:
        """Its entries of `GET /v1/scorers`. Raises as `post`."""
        answer = await self._ask(deployment, "GET", SCORERS_PATH)
        if answer.status != 200:
            raise InternalError(f"`{deployment}` did not list its scorers (status {answer.status})")
        try:
            content: dict[str, Any] = JSON.load(answer.body)
            _Listing.model_validate(content)
        except ValueError:
            raise InternalError(
                f"`{deployment}` answered 200 with a body that lists no scorers"
            ) from None
        return list(content["scorers"])

    async def _ask(
        self, deployment: str, method: str, path: str, *, body: bytes | None = None
    ) -> Answer:
        left_s = self.left_s
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be forwarded")
        try:
            async with asyncio.timeout(left_s):
                await self._upstreams.expect_ready(deployment)
                headers = {
                    **self._headers,
                    "content-type": self.sends.name,
                    TIMEOUT_HEADER: f"{self.left_s:.6f}",
                }
                response = await self._upstreams.client.request(
                    method, deployment_prefix(deployment) + path, content=body, headers=headers
                )
        except TimeoutError:
            self._upstreams.distrust(deployment)
            raise DeadlineExceeded(f"`{deployment}` did not answer before the deadline") from None
        except httpx.TransportError as error:
            self._upstreams.distrust(deployment)
            raise InternalError(
                f"the connection to `{deployment}` broke ({type(error).__name__})"
            ) from None
        response.stream = httpx.ByteStream(
            b""
        )  # the one it was read from holds it, and with it both bodies: a cycle
        answer = _ours(response)
        if answer is None:
            self._upstreams.distrust(deployment)
            raise _translated(deployment, response.status_code)
        return answer


def _ours(response: httpx.Response) -> Answer | None:
    """The answer, if our own code made it; proxies answer in plain text, or in JSON of their
    own."""
    if response.headers.get("content-type", "").startswith((JSON.name, MSGPACK.name)):
        passed_on = {
            name: response.headers[name] for name in _PASSED_ON if name in response.headers
        }
        answer = Answer(response.status_code, response.content, passed_on)
        if answer.status == 200 or _has_our_error(answer):
            return answer
    return None


def _has_our_error(answer: Answer) -> bool:
    try:
        content = answer.media.load(answer.body)
    except ValueError:
        return False
    error = content.get("error") if isinstance(content, dict) else None
    return isinstance(error, dict) and error.keys() >= {"code", "message", "retryable"}


def _translated(deployment: str, status: int) -> RequestError:
    if status == 408:
        return DeadlineExceeded(f"`{deployment}` did not answer before the deadline")
    if status in (404, 503):
        return Loading(f"`{deployment}` has no replica that answers", retry_after_s=2)
    return InternalError(f"`{deployment}` failed while answering (status {status})")
