"""The ASGI application of a replica and of the gateway: the same routes, with the guard in front.

It knows routes and what each answers with, and leaves the answers to a backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn.protocols.websockets.auto
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from tokenreward.http.body import BodyBudget
from tokenreward.http.guard import Guard, Report
from tokenreward.http.model_list import list_models
from tokenreward.http.openapi import document
from tokenreward.http.page import docs_page
from tokenreward.http.protocols import Protocol, find_protocols
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import headers_of, unknown_route
from tokenreward.metrics import CONTENT_TYPE
from tokenreward.wire.media import JSON
from tokenreward.wire.paths import (
    DOCS_PATH,
    HEALTH_PATH,
    HEALTH_PATHS,
    METRICS_PATH,
    MODELS_PATHS,
    OPENAPI_PATH,
    READY_PATH,
    SCORERS_PATH,
    SEED_SESSION_PATH,
    TOKENIZE_PATH,
    WEIGHTS_PATH,
)

Endpoint = Callable[[Request], Awaitable[Response]]

_PROBE_METHODS = ["GET", "HEAD"]  # servers send no body in answer to a HEAD


class Backend(ABC):
    """What answers behind the routes. All methods raise RequestError for a refusal.

    Args:
        limits: The limits of requests.
        report: Told the metrics of the requests.

    Attributes:
        bodies: How many bytes of requests the process holds.
    """

    def __init__(self, limits: Limits, report: Report) -> None:
        self.limits = limits
        self.report = report
        self.bodies = BodyBudget(
            limits.max_body_memory_bytes,
            max_body_bytes=limits.max_body_bytes,
            max_receive_s=limits.request_timeout_s,
        )

    @abstractmethod
    async def rewards(self, request: Request, protocol: Protocol) -> Response:
        """The answer to a request for rewards, whose body is yet to be read."""

    @abstractmethod
    async def tokens(self, request: Request) -> Response:
        """The answer to `POST /tokenize`, whose body is yet to be read."""

    @abstractmethod
    async def scorers(self, request: Request) -> dict[str, Any]:
        """The content of `GET /v1/scorers`."""

    @abstractmethod
    async def check_ready(self) -> None:
        """Raises Loading if requests for rewards cannot be answered now."""

    @abstractmethod
    async def metrics(self) -> bytes:
        """Prometheus text."""


def build_app(backend: Backend, weights: Endpoint | None = None) -> FastAPI:
    """The application in front of a backend. `weights` answers the routes that change weights;
    without it there are none."""
    app = _app_with_protocols(backend)
    content = document(admin=weights is not None)
    openapi, page = JSON.dump(content), docs_page(content)

    async def describe() -> Response:
        return Response(openapi, media_type=JSON.name)

    async def docs() -> Response:
        return Response(page, media_type="text/html")

    async def scorers(request: Request) -> Response:
        return _json(await backend.scorers(request))

    async def health() -> Response:
        return _json({"status": "ok"})

    async def ready() -> Response:
        await backend.check_ready()
        return _json({"status": "ready"})

    async def metrics() -> Response:
        return Response(await backend.metrics(), media_type=CONTENT_TYPE)

    app.add_api_route(SCORERS_PATH, scorers, methods=["GET"])
    app.add_api_route(HEALTH_PATH, health, methods=_PROBE_METHODS)
    app.add_api_route(READY_PATH, ready, methods=_PROBE_METHODS)
    app.add_api_route(OPENAPI_PATH, describe, methods=["GET"])
    app.add_api_route(DOCS_PATH, docs, methods=["GET"])
    app.add_api_route(METRICS_PATH, metrics, methods=["GET"])
    if weights is not None:
        app.add_route(WEIGHTS_PATH, weights, methods=["GET", "POST"])
    _add_model_routes(app, backend)
    return app


def refuse_websockets() -> None:
    """Has uvicorn answer a request for a WebSocket as any other. No route of ours speaks it, and
    uvicorn's WebSocket protocol never answers `Upgrade: websocket` on a POST with a body.

    It has an effect on HTTP servers that this process starts later.
    """
    uvicorn.protocols.websockets.auto.AutoWebSocketsProtocol = None


def _app_with_protocols(backend: Backend) -> FastAPI:
    """The application with the routes on which rewards are asked."""
    protocols = find_protocols()
    guard = Middleware(Guard, limits=backend.limits, protocols=protocols, report=backend.report)
    app = FastAPI(
        title="tokenreward",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # it would know nothing of bodies that we read ourselves
        redirect_slashes=False,  # it would send callers to whatever host they named
        middleware=[guard],
        exception_handlers={HTTPException: _refuse_route},
    )
    for path, protocol in protocols.items():
        # Not an API route, which would read the body before we do.
        app.add_route(path, _rewards_route(backend, protocol, path), methods=["POST"])
    return app


def _add_model_routes(app: FastAPI, backend: Backend) -> None:
    """Where other programs look whether the service answers, for which models, and with which
    tokens."""

    async def models(request: Request) -> Response:
        return _json(list_models((await backend.scorers(request))["scorers"]))

    async def answers(request: Request) -> Response:
        # Clients wait for this route and then ask for the models: 200 wherever those are told.
        await backend.scorers(request)
        return _json({})

    async def seed_session(_: Request) -> Response:
        return _json({})  # a session has no state here

    app.add_route(TOKENIZE_PATH, backend.tokens, methods=["POST"])
    app.add_route(SEED_SESSION_PATH, seed_session, methods=["POST"])
    for path in HEALTH_PATHS:
        app.add_api_route(path, answers, methods=_PROBE_METHODS)
    for path in MODELS_PATHS:
        app.add_api_route(path, models, methods=["GET"])


def _rewards_route(backend: Backend, kind: type[Protocol], path: str) -> Endpoint:
    async def rewards(request: Request) -> Response:
        protocol = kind(headers_of(request.scope))
        protocol.path = path
        return await backend.rewards(request, protocol)

    return rewards


async def _refuse_route(request: Request, _: Exception) -> Response:
    """Whatever the router refuses is a route that we do not have."""
    raise unknown_route(request.scope)


def _json(content: object) -> Response:
    return Response(JSON.dump(content), media_type=JSON.name)
