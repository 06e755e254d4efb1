"""The gateway as Ray Serve runs it, and what it needs of Ray: the metrics and the health of all
replicas.

It knows no scorers and reads no requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from tokenreward.deployment.plan import REPLICA, limits_of
from tokenreward.deployment.process import tune_interpreter
from tokenreward.http.app import build_app
from tokenreward.http.dependencies import ScorerRoute
from tokenreward.http.gateway import GatewayBackend
from tokenreward.http.scope import App
from tokenreward.http.upstream import Upstreams
from tokenreward.metrics import Snapshot

_GATHER_TIMEOUT_S = 5.0

logger = logging.getLogger("ray.serve")


@serve.deployment
@serve.ingress()
class Gateway:
    """The application at `/`, with one HTTP client and one handle per deployment.

    Args:
        args: The application's `args` in the config that `plan.serve_config` made.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        tune_interpreter()
        self._args = args
        self._routes = {name: ScorerRoute(**route) for name, route in args["routes"].items()}
        deployments = dict.fromkeys(route.deployment for route in self._routes.values())
        self._replicas = Replicas(list(deployments))

    def __serve_build_asgi_app__(self) -> App:
        # Ray's proxy closes idle connections after 90 s. Ours are given up sooner: a request on a
        # connection that is being closed fails.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=30
        )
        client = httpx.AsyncClient(
            base_url=self._args["url"],
            limits=limits,
            timeout=None,  # noqa: S113 - each request has its own deadline
            trust_env=False,
        )
        backend = GatewayBackend(
            self._routes,
            Upstreams(client, self._replicas.has_ready),
            gather=self._replicas.snapshots,
            limits=limits_of(self._args),
            replica=serve.get_replica_context().replica_tag,
        )
        return build_app(backend)


def _handle_of(deployment: str) -> Any:
    """Ray's handle of a deployment, which asks all of its replicas at once."""
    return serve.get_deployment_handle(REPLICA, app_name=deployment)


class Replicas:
    """Asks every running replica of every deployment for its metrics, or for its health.

    Args:
        deployments: The names of the deployments.
        handle_of: Gives the handle of a deployment. It is called once for each, when it is needed:
            a handle cannot be had before Ray runs the deployment.
    """

    def __init__(
        self, deployments: list[str], *, handle_of: Callable[[str], Any] = _handle_of
    ) -> None:
        self._deployments = deployments
        self._handle_of = handle_of
        self._handles: dict[str, Any] = {}

    async def snapshots(self) -> dict[str, dict[str, Snapshot]]:
        """The metrics by deployment, then replica.

        Only replicas that are loaded answer. A replica that has just died is left out.
        """
        all_answers = await asyncio.gather(
            *(self._broadcast(name, "snapshot") for name in self._deployments)
        )
        return {
            deployment: dict(answers)
            for deployment, answers in zip(self._deployments, all_answers, strict=True)
        }

    async def has_ready(self, deployment: str) -> bool:
        """Whether one of its replicas is loaded and healthy."""
        return bool(await self._broadcast(deployment, "check_health"))

    async def _broadcast(self, deployment: str, method: str) -> list[Any]:
        """Calls a method of each running replica, and returns what did not raise."""
        if deployment not in self._handles:
            self._handles[deployment] = self._handle_of(deployment)
        try:
            answers = (
                await self._handles[deployment]
                .broadcast(method)
                .results_async(timeout_s=_GATHER_TIMEOUT_S, return_exceptions=True)
            )
        except (DeploymentUnavailableError, TimeoutError) as error:
            logger.info("%s: no replica answers (%s)", deployment, type(error).__name__)
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]
