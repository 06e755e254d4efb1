"""HTTP routes of the front: the same API for all scorers, forwarded to the deployments that hold them.

Raw bytes pass through unchanged where one deployment has everything; otherwise the request is split and the replies are
merged. It knows which scorer lives where, and no models; what needs Ray is injected as plain callables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from tokenreward.errors import Loading, TooManyItems, UnknownRoute
from tokenreward.gateway.fanout import fan_out
from tokenreward.gateway.route import Route, find
from tokenreward.gateway.sources import names_another
from tokenreward.gateway.upstream import Answer, Gather, HasReady, Passage, Upstreams
from tokenreward.guard import PROBE_METHODS, Guard, Rules, for_size, headers_of, read_body, time_limit_s, unless_gone
from tokenreward.metrics import CONTENT_TYPE, REQUESTS, Metrics, render
from tokenreward.wire import RewardsRequest
from tokenreward.wire.media import JSON, Media, answered_in, media_of

__all__ = ["Route", "build_app"]

_OWN_LABEL = "gateway"


def build_app(
    routes: Mapping[str, Route],
    client: httpx.AsyncClient,
    *,
    gather: Gather,
    has_ready: HasReady,
    rules: Rules,
    replica: str = "",
) -> FastAPI:
    """The application at `/`. `routes`: where each scorer is served. `client`: speaks to the service's own address.
    `gather`: the metric snapshots of each deployment's replicas that are loaded now.
    `has_ready`: whether a deployment has a replica that is loaded and healthy.
    `replica`: the front's own label in the metrics."""
    own = Metrics(REQUESTS)
    front = _Front(
        routes, upstreams=Upstreams(client, has_ready), gather=gather, rules=rules, own=((_OWN_LABEL, replica), own)
    )
    app = FastAPI(
        title="tokenreward",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # it would send callers to whatever host they named
        middleware=[Middleware(Guard, rules=rules, report=own.report)],
        exception_handlers={HTTPException: _refuse_route},
    )
    app.add_route("/v1/rewards", front.rewards, methods=["POST"])  # not the API route: it would read what we do
    app.add_api_route("/v1/scorers", front.scorers, methods=["GET"])
    app.add_api_route("/healthz", front.healthz, methods=PROBE_METHODS)
    app.add_api_route("/readyz", front.readyz, methods=PROBE_METHODS)
    app.add_api_route("/metrics", front.metrics, methods=["GET"])
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
            both = [field if isinstance(field, dict) else {} for field in (self.options, self.credit)]
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
        rules: Rules,
        own: tuple[tuple[str, str], Metrics],
    ) -> None:
        self._routes = routes
        self._deployments = list(dict.fromkeys(route.deployment for route in routes.values()))
        self._upstreams = upstreams
        self._gather = gather
        self._rules = rules
        self._own = own

    async def rewards(self, request: Request) -> Response:
        passage = self._passage(request, media_of(headers_of(request.scope)))
        body = await read_body(request.scope, request.receive, limit=self._rules.max_body_bytes)
        asked = await for_size(len(body), _asked, passage.sends, body)
        param = "scorer" if len(asked.names) == 1 else "scorers"
        deployments = {find(self._routes, name, param=param).deployment for name in asked.names}
        if len(deployments) == 1 and not asked.asks_another(self._routes):
            work = passage.post(deployments.pop(), body)
        else:
            work = self._fan_out(body, passage=passage, request_id=request.state.request_id)
        answer = await unless_gone(request.receive, work)
        return Response(answer.body, answer.status, headers=answer.headers)

    async def scorers(self, request: Request) -> Response:
        passage = self._passage(request)
        listings = await asyncio.gather(*(passage.scorers(name) for name in self._deployments))
        return _json({"scorers": [entry for listing in listings for entry in listing]})

    async def healthz(self) -> Response:
        return _json({"status": "ok"})

    async def readyz(self) -> Response:
        if missing := await self._upstreams.missing(self._deployments):
            raise Loading(f"not ready: {', '.join(missing)}", retry_after_s=2)
        return _json({"status": "ready"})

    async def metrics(self) -> Response:
        gathered = await self._gather()
        snapshots = {(name, replica): s for name, replicas in gathered.items() for replica, s in replicas.items()}
        labels, own = self._own
        return Response(render({**snapshots, labels: own.snapshot()}), media_type=CONTENT_TYPE)

    def _passage(self, request: Request, sends: Media = JSON) -> Passage:
        given = headers_of(request.scope)
        headers = {"x-request-id": request.state.request_id}
        if (key := given.get("authorization")) is not None:
            headers["authorization"] = key
        limit_s = time_limit_s(request.scope, self._rules)
        return Passage(self._upstreams, headers=headers, limit_s=limit_s, sends=sends, wants=answered_in(given))

    async def _fan_out(self, body: bytes, *, passage: Passage, request_id: str) -> Answer:
        request = await for_size(len(body), passage.sends.parse, RewardsRequest, body)
        limit = self._rules.max_request_items
        if len(request.items) > limit:
            raise TooManyItems(f"the request has {len(request.items)} items, the limit is {limit}", param="items")
        return await fan_out(request, body, self._routes, passage=passage, request_id=request_id)


def _asked(media: Media, body: bytes) -> _Asked:
    """What a body asks for. Raises as `Media.parse`."""
    asked = media.parse(_Asked, body)
    if (asked.scorer is None) == (not asked.scorers):
        media.parse(RewardsRequest, body)  # which refuses it, and says what is wrong
    return asked


async def _refuse_route(request: Request, _: Exception) -> Response:
    raise UnknownRoute(f"no such route: {request.method} here; see GET /v1/scorers for what is served")


def _json(content: object) -> Response:
    return Response(JSON.dump(content), media_type=JSON.name)
