"""HTTP routes of one replica: parse, refuse early, submit to the engine, reply.

It knows one deployment's engine and nothing of other replicas or of Ray, which mounts it at
`/d/{deployment}`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from tokenreward.engine.slot import Slot
from tokenreward.errors import DeadlineExceeded, Loading
from tokenreward.http.guard import (
    IN_A_THREAD_BYTES,
    PROBE_METHODS,
    Guard,
    Limits,
    Room,
    for_size,
    headers_of,
    refuse_many_items,
    time_limit_s,
    unknown_route,
    unless_gone,
)
from tokenreward.metrics import CONTENT_TYPE, Metrics, render
from tokenreward.wire import RewardsRequest, write_reply
from tokenreward.wire.media import JSON, Media, answer_media, media_of
from tokenreward.wire.paths import (
    HEALTH_PATH,
    METRICS_PATH,
    READY_PATH,
    REWARDS_PATH,
    SCORERS_PATH,
    deployment_prefix,
)

logger = logging.getLogger(__name__)


def build_app(
    deployment: str,
    slot: Slot,
    *,
    metrics: Metrics,
    limits: Limits,
) -> FastAPI:
    """The application of one replica; `slot` is empty while its weights load."""
    replica = _Replica(deployment, slot, metrics=metrics, limits=limits)
    app = FastAPI(
        title=f"tokenreward: {deployment}",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # it would send callers to whatever host they named
        middleware=[Middleware(Guard, limits=limits, report=metrics.report)],
        exception_handlers={HTTPException: refuse_route},
    )
    app.add_route(
        REWARDS_PATH, replica.rewards, methods=["POST"]
    )  # not the API route: it would read what we do
    app.add_api_route(SCORERS_PATH, replica.scorers, methods=["GET"])
    app.add_api_route(HEALTH_PATH, replica.healthz, methods=PROBE_METHODS)
    app.add_api_route(READY_PATH, replica.readyz, methods=PROBE_METHODS)
    app.add_api_route(METRICS_PATH, replica.metrics, methods=["GET"])
    return app


class _Replica:
    """The routes, around the engine that is current when a request comes."""

    def __init__(self, deployment: str, slot: Slot, *, metrics: Metrics, limits: Limits) -> None:
        self._deployment = deployment
        self._slot = slot
        self._metrics = metrics
        self._limits = limits
        self._room = Room()

    async def rewards(self, request: Request) -> Response:
        arrived = time.perf_counter()
        limit_s = time_limit_s(request.scope, self._limits)
        headers = headers_of(request.scope)
        media = media_of(headers)
        limit = self._limits.max_body_bytes
        async with self._room.body(
            request.scope, request.receive, limit=limit, within_s=limit_s
        ) as body:
            num_bytes = len(body)
            asked = await for_size(num_bytes, media.parse, RewardsRequest, body)
        del body  # scoring takes a while
        refuse_many_items(len(asked.items), self._limits)
        answer = answer_media(headers)
        remaining_s = limit_s - (time.perf_counter() - arrived)
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request was read")
        with self._slot.lease() as engine:
            scoring = engine.score(
                asked, request_id=request.state.request_id, timeout_s=remaining_s
            )
            reply = await unless_gone(request.receive, scoring)
        # Base64 is JSON's: msgpack carries arrays as they are.
        encoding = asked.encoding_format if answer is JSON else "float"
        content = write_reply(reply, encoding=encoding)
        return await _reply(content, answer, is_large=num_bytes > IN_A_THREAD_BYTES)

    async def scorers(self) -> Response:
        route = deployment_prefix(self._deployment) + REWARDS_PATH
        ours = {
            "max_body_bytes": self._limits.max_body_bytes,
            "max_request_items": self._limits.max_request_items,
        }
        entries = self._slot.engine.describe()
        return _json(
            {"scorers": [{**e, "route": route, "limits": {**e["limits"], **ours}} for e in entries]}
        )

    async def healthz(self) -> Response:
        return _json({"status": "ok"})

    async def readyz(self) -> Response:
        engine = self._slot.engine
        try:
            engine.check_health()
        except Exception as error:
            logger.warning("not ready: %s", error)
            raise Loading(f"`{self._deployment}` is not healthy and will be replaced") from None
        return _json({"status": "ready"})

    async def metrics(self) -> Response:
        return Response(
            render({(self._deployment, ""): self._metrics.snapshot()}), media_type=CONTENT_TYPE
        )


async def refuse_route(request: Request, _: Exception) -> Response:
    """Whatever the router refuses is a route that we do not have."""
    raise unknown_route(request.scope)


async def _reply(reply: dict[str, Any], media: Media, *, is_large: bool) -> Response:
    dump = _dump_in_pieces if media is JSON and is_large else media.dump
    body = await asyncio.to_thread(dump, reply) if is_large else dump(reply)
    return Response(body, media_type=media.name)


def _dump_in_pieces(reply: dict[str, Any]) -> bytes:
    """One item at a time: a call of orjson keeps all other threads waiting until it returns."""
    items = [JSON.dump(item) for item in reply["items"]]
    rest = JSON.dump({key: value for key, value in reply.items() if key != "items"})
    return rest[:-1] + b',"items":[' + b",".join(items) + b"]}"


def _json(content: dict[str, Any]) -> Response:
    return Response(JSON.dump(content), media_type=JSON.name)
