"""One deployment seen from the front: forwards a body over HTTP and answers with our error body whatever came back.

It knows paths, headers and deadlines, and nothing of what the bodies say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from tokenreward.errors import DeadlineExceeded, InternalError, Loading, RequestError
from tokenreward.guard import TIMEOUT_HEADER

Gather = Callable[[], Awaitable[Mapping[str, Mapping[str, Any]]]]

_PASSED_ON = ("content-type", "retry-after")


@dataclass(frozen=True, slots=True)
class Answer:
    """A deployment's answer, as it came."""

    status: int
    body: bytes
    headers: dict[str, str]


class Upstreams:
    """The deployments behind the front. `gather` says which have a replica loaded: those with an entry in theirs."""

    def __init__(self, client: httpx.AsyncClient, gather: Gather) -> None:
        self.client = client
        self._gather = gather
        self._seen_loaded: set[str] = set()

    async def missing(self, deployments: Sequence[str]) -> list[str]:
        """Those of `deployments` that have no replica loaded now."""
        gathered = await self._gather()
        self._seen_loaded.update(name for name, replicas in gathered.items() if replicas)
        return [name for name in deployments if not gathered.get(name)]

    async def expect_loaded(self, deployment: str) -> None:
        """Raises Loading if it was never seen with a replica and has none now.

        Ray's proxy holds requests for a deployment without replicas until their deadline; we answer at once instead.
        """
        if deployment not in self._seen_loaded and await self.missing([deployment]):
            raise Loading(f"`{deployment}` is loading its weights", retry_after_s=2)


class Passage:
    """One request's way to the deployments: the headers it travels with and the time it has left."""

    def __init__(self, upstreams: Upstreams, *, headers: Mapping[str, str], limit_s: float) -> None:
        self._upstreams = upstreams
        self._headers = dict(headers)
        self._deadline = time.monotonic() + limit_s

    async def post(self, deployment: str, body: bytes) -> Answer:
        """The deployment's answer to `POST /v1/rewards`; its refusals are answers too.

        Raises Loading, DeadlineExceeded, InternalError.
        """
        return await self._ask(deployment, "POST", "/v1/rewards", body=body)

    async def scorers(self, deployment: str) -> list[dict[str, Any]]:
        """Its entries of `GET /v1/scorers`. Raises as `post`."""
        answer = await self._ask(deployment, "GET", "/v1/scorers")
        if answer.status != 200:
            raise InternalError(f"`{deployment}` did not list its scorers (status {answer.status})")
        return list(orjson.loads(answer.body)["scorers"])

    async def _ask(self, deployment: str, method: str, path: str, *, body: bytes | None = None) -> Answer:
        await self._upstreams.expect_loaded(deployment)
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be forwarded")
        headers = {**self._headers, "content-type": "application/json", TIMEOUT_HEADER: f"{left_s:.6f}"}
        try:
            async with asyncio.timeout(left_s):
                response = await self._upstreams.client.request(
                    method, f"/d/{deployment}{path}", content=body, headers=headers
                )
        except TimeoutError:
            raise DeadlineExceeded(f"`{deployment}` did not answer before the deadline") from None
        except httpx.TransportError as error:
            raise InternalError(f"the connection to `{deployment}` broke ({type(error).__name__})") from None
        return _ours(deployment, response)


def _ours(deployment: str, response: httpx.Response) -> Answer:
    """The answer, if our own code made it; proxies answer in plain text, or in JSON of their own."""
    is_json = response.headers.get("content-type", "").startswith("application/json")
    if is_json and (response.status_code == 200 or _has_our_error(response.content)):
        passed_on = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        return Answer(response.status_code, response.content, passed_on)
    raise _translated(deployment, response.status_code)


def _has_our_error(body: bytes) -> bool:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    error = content.get("error") if isinstance(content, dict) else None
    return isinstance(error, dict) and error.keys() >= {"code", "message", "retryable"}


def _translated(deployment: str, status: int) -> RequestError:
    if status == 408:
        return DeadlineExceeded(f"`{deployment}` did not answer before the deadline")
    if status in (404, 503):
        return Loading(f"`{deployment}` has no replica that answers", retry_after_s=2)
    return InternalError(f"`{deployment}` failed while answering (status {status})")
