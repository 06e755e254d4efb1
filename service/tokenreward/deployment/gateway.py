"""The gateway as Ray Serve runs it, and the one thing it needs of Ray: what all replicas say of
themselves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from tokenreward.deployment.plan import REPLICA, limits_of
from tokenreward.deployment.process import be_responsive
from tokenreward.http.gateway import Route, build_app
from tokenreward.http.guard import App
from tokenreward.metrics import Snapshot

_GATHER_TIMEOUT_S = 5.0

logger = logging.getLogger("ray.serve")


@serve.deployment
@serve.ingress()
class Gateway:
    """The front's application, with one HTTP client and one handle per deployment."""

    def __init__(self, args: dict[str, Any]) -> None:
        be_responsive()
        self._args = args
        self._routes = {name: Route(**route) for name, route in args["routes"].items()}
        self._replicas = Replicas(
            list(dict.fromkeys(route.deployment for route in self._routes.values()))
        )

    def __serve_build_asgi_app__(self) -> App:
        # Ray's proxy closes idle connections after 90 s; we give them up sooner, or a request meets
        # a closed one.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=30
        )
        client = httpx.AsyncClient(
            base_url=self._args["url"],
            limits=limits,
            timeout=None,  # noqa: S113 - each request has its own deadline
            trust_env=False,
        )
        return build_app(
            self._routes,
            client,
            gather=self._replicas.snapshots,
            has_ready=self._replicas.has_ready,
            limits=limits_of(self._args),
            replica=serve.get_replica_context().replica_tag,
        )


class Replicas:
    """Asks every running replica of every deployment for its metrics, or for its health."""

    def __init__(self, deployments: list[str]) -> None:
        self._deployments = deployments
        self._handles: dict[str, DeploymentHandle] = {}

    async def snapshots(self) -> dict[str, dict[str, Snapshot]]:
        """By deployment, then replica. Only replicas that are loaded answer; one that just died is
        left out."""
        gathered = await asyncio.gather(*(self._ask(name) for name in self._deployments))
        return dict(zip(self._deployments, gathered, strict=True))

    async def has_ready(self, deployment: str) -> bool:
        """Whether one of its replicas is loaded and healthy."""
        answers = await self._broadcast(deployment, "check_health")
        return any(not isinstance(answer, BaseException) for answer in answers)

    async def _ask(self, deployment: str) -> dict[str, Snapshot]:
        answers = await self._broadcast(deployment, "snapshot")
        return dict(answer for answer in answers if not isinstance(answer, BaseException))

    async def _broadcast(self, deployment: str, method: str) -> list[Any]:
        """What each running replica returned or raised."""
        if deployment not in self._handles:
            self._handles[deployment] = serve.get_deployment_handle(REPLICA, app_name=deployment)
        try:
            answers = self._handles[deployment].broadcast(method)
            return list(
                await answers.results_async(timeout_s=_GATHER_TIMEOUT_S, return_exceptions=True)
            )
        except (DeploymentUnavailableError, TimeoutError) as error:
            logger.info("%s: no replica answers (%s)", deployment, type(error).__name__)
            return []
