"""HTTP routes of the front: the same API for all scorers, forwarded to the deployments that hold
them.

Raw bytes pass through unchanged where one deployment has everything; otherwise the request is split
and the replies are merged. It knows which scorer lives where, and no models; what needs Ray is
injected as plain callables.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Mapping
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from tokenreward.errors import Loading, RequestError
from tokenreward.http.dependencies import names_another
from tokenreward.http.fanout import fan_out
from tokenreward.http.guard import (
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
from tokenreward.http.route import Route, find
from tokenreward.http.upstream import Answer, Gather, HasReady, Passage, Upstreams
from tokenreward.metrics import CONTENT_TYPE, REQUESTS, Metrics, render
from tokenreward.wire import RewardsRequest
from tokenreward.wire.media import JSON, Media, answer_media, media_of
from tokenreward.wire.paths import (
    HEALTH_PATH,
    METRICS_PATH,
    READY_PATH,
    REQUEST_ID_HEADER,
    REWARDS_PATH,
    SCORERS_PATH,
)

__all__ = ["Route", "build_app"]

_OWN_LABEL = "gateway"
_LISTING_S = 3.0  # that all wait for a deployment that does not list its scorers

logger = logging.getLogger(__name__)


def build_app(
    routes: Mapping[str, Route],
    client: httpx.AsyncClient,
    *,
    gather: Gather,
    has_ready: HasReady,
    limits: Limits,
    replica: str = "",
) -> FastAPI:
    """The application at `/`. `routes`: where each scorer is served. `client`: speaks to the
    service's own address. `gather`: the metric snapshots of each deployment's replicas that are
    loaded now. `has_ready`: whether a deployment has a replica that is loaded and healthy.
    `replica`: the front's own label in the metrics."""
    own = Metrics(REQUESTS)
    front = _Front(
        routes,
        upstreams=Upstreams(client, has_ready),
        gather=gather,
        limits=limits,
        own=((_OWN_LABEL, replica), own),
    )
    app = FastAPI(
        title="tokenreward",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # it would send callers to whatever host they named
        middleware=[Middleware(Guard, limits=limits, report=own.report)],
        exception_handlers={HTTPException: _refuse_route},
    )
    app.add_route(
        REWARDS_PATH, front.rewards, methods=["POST"]
    )  # not the API route: it would read what we do
    app.add_api_route(SCORERS_PATH, front.scorers, methods=["GET"])
    app.add_api_route(HEALTH_PATH, front.healthz, methods=PROBE_METHODS)
    app.add_api_route(READY_PATH, front.readyz, methods=PROBE_METHODS)
    app.add_api_route(METRICS_PATH, front.metrics, methods=["GET"])
    return app


class _Asked(BaseModel):
    """As little of a request as says where it goes; the deployment reads the rest."""

    model_config = ConfigDict(extra="ignore", strict=True)

    scorer: str | None = None
    scorers: list[str] | None = None
    options: Any = None
    credit: Any = None

    @property
    def names(self) -> list[str]:
        """The scorers asked for."""
        return [self.scorer] if self.scorer is not None else list(self.scorers or ())

    def asks_another(self, routes: Mapping[str, Route]) -> bool:
        """Whether a scorer that the caller did not ask for may have to be asked first."""
        if self.scorer is not None:
            named = names_another(self.options, self.credit)
        else:
            both = [
                field if isinstance(field, dict) else {} for field in (self.options, self.credit)
            ]
            named = any(names_another(*(field.get(name) for field in both)) for name in self.names)
        return named or any(routes[name].score_from is not None for name in self.names)


class _Front:
    """The routes."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        upstreams: Upstreams,
        gather: Gather,
        limits: Limits,
        own: tuple[tuple[str, str], Metrics],
    ) -> None:
        self._routes = routes
        self._deployments = list(dict.fromkeys(route.deployment for route in routes.values()))
        self._upstreams = upstreams
        self._gather = gather
        self._limits = limits
        self._own = own
        self._room = Room()

    async def rewards(self, request: Request) -> Response:
        passage = self._passage(request, media_of(headers_of(request.scope)))
        limit = self._limits.max_body_bytes
        async with self._room.body(
            request.scope, request.receive, limit=limit, within_s=passage.left_s
        ) as body:
            work = await self._work(body, passage)
        answer = await unless_gone(request.receive, work)
        return Response(answer.body, answer.status, headers=answer.headers)

    async def scorers(self, request: Request) -> Response:
        """What the deployments list that answer soon; `unavailable` names the others. Raises why,
        if none answers."""
        passage = self._passage(request, most_s=_LISTING_S)
        listings = await asyncio.gather(*(_listing(passage, name) for name in self._deployments))
        failures = [listing for listing in listings if isinstance(listing, RequestError)]
        if len(failures) == len(listings):
            raise failures[0]
        both = list(zip(self._deployments, listings, strict=True))
        entries = [entry for _, listing in both if isinstance(listing, list) for entry in listing]
        return _json(
            {
                "scorers": entries,
                "unavailable": [name for name, each in both if not isinstance(each, list)],
            }
        )

    async def healthz(self) -> Response:
        return _json({"status": "ok"})

    async def readyz(self) -> Response:
        if missing := await self._upstreams.missing(self._deployments):
            raise Loading(f"not ready: {', '.join(missing)}", retry_after_s=2)
        return _json({"status": "ready"})

    async def metrics(self) -> Response:
        gathered = await self._gather()
        snapshots = {
            (name, replica): s
            for name, replicas in gathered.items()
            for replica, s in replicas.items()
        }
        labels, own = self._own
        return Response(render({**snapshots, labels: own.snapshot()}), media_type=CONTENT_TYPE)

    def _passage(
        self, request: Request, sends: Media = JSON, *, most_s: float = math.inf
    ) -> Passage:
        given = headers_of(request.scope)
        headers = {REQUEST_ID_HEADER: request.state.request_id}
        if (key := given.get("authorization")) is not None:
            headers["authorization"] = key
        limit_s = min(most_s, time_limit_s(request.scope, self._limits))
        return Passage(
            self._upstreams,
            headers=headers,
            limit_s=limit_s,
            sends=sends,
            wants=answer_media(given),
        )

    async def _work(self, body: bytes, passage: Passage) -> Coroutine[Any, Any, Answer]:
        """What is left to do when the body is read. Raises RequestError."""
        asked = await for_size(len(body), _asked, passage.sends, body)
        param = "scorer" if asked.scorer is not None else "scorers"
        deployments = {find(self._routes, name, param=param).deployment for name in asked.names}
        if len(deployments) == 1 and not asked.asks_another(self._routes):
            return passage.post(deployments.pop(), body)
        request = await for_size(len(body), passage.sends.parse, RewardsRequest, body)
        refuse_many_items(len(request.items), self._limits)
        return fan_out(request, body, self._routes, passage=passage, report=self._own[1].report)


async def _listing(passage: Passage, deployment: str) -> list[dict[str, Any]] | RequestError:
    """Its entries, or why there are none."""
    try:
        return await passage.scorers(deployment)
    except RequestError as error:
        logger.warning("`%s` is not listed: %s", deployment, error.message)
        return error


def _asked(media: Media, body: bytes) -> _Asked:
    """What a body asks for. Raises as `Media.parse`."""
    asked = media.parse(_Asked, body)
    if (asked.scorer is None) == (not asked.scorers):
        media.parse(RewardsRequest, body)  # which refuses it, and says what is wrong
    return asked


async def _refuse_route(request: Request, _: Exception) -> Response:
    raise unknown_route(request.scope)


def _json(content: object) -> Response:
    return Response(JSON.dump(content), media_type=JSON.name)
