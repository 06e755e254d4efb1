"""The gateway as Ray Serve runs it, and what it needs of Ray: the metrics, the health and the
weights of all replicas.

It knows no scorers and reads no requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

import httpx
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve._private.constants import RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP
from ray.serve.exceptions import RayServeException

from tokenreward.deployment.plan import (
    GATEWAY,
    GATEWAY_APP,
    REPLICA,
    limits_of,
    protocol_plans,
)
from tokenreward.deployment.process import give_back_memory, log_with_ray, tune_interpreter
from tokenreward.deployment.ray_calls import on_thread
from tokenreward.deployment.registry import RayKeyValues
from tokenreward.deployment.replica_counts import ray_controller, replica_counts
from tokenreward.http.app import Endpoint, build_app, refuse_websockets
from tokenreward.http.gateway.backend import LABEL, GatewayBackend
from tokenreward.http.gateway.registry import Registry
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.gateway.upstream import Upstreams
from tokenreward.http.gateway.weights import WeightsRoute
from tokenreward.http.scope import App
from tokenreward.metrics import REQUESTS, Metrics, Snapshot

GATHER_TIMEOUT_S = 5.0
# What Ray raises for a deployment that does not answer: KeyError if it does not exist (any more).
_GONE = (KeyError, RayServeException, RayError, TimeoutError)

logger = logging.getLogger("ray.serve")

HandleOf = Callable[[str], Any]  # Ray's handle of a deployment


@cache
def ray_handle(application: str) -> Any:
    """Ray's handle of a deployment or of the gateway, which asks all of its replicas at once.

    It cannot be had before Ray runs the application. It blocks while Ray's controller or the GCS is
    away.
    """
    name = GATEWAY if application == GATEWAY_APP else REPLICA
    handle = serve.get_deployment_handle(name, app_name=application)
    if not RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP:  # then its router is made on the event loop
        return handle
    return handle.options()  # makes its router, which asks the GCS, too


@serve.deployment
@serve.ingress()
class Gateway:
    """The application at `/`, with one HTTP client and one handle per deployment.

    Args:
        args: The application's `args` in the config that `plan.serve_config` made.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        tune_interpreter()
        give_back_memory()
        log_with_ray()
        refuse_websockets()
        self._args = args
        self._metrics = Metrics(REQUESTS)
        self._routes = {name: ScorerRoute(**route) for name, route in args["routes"].items()}

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
        deployments = dict.fromkeys(route.deployment for route in self._routes.values())
        backend = GatewayBackend(
            self._routes,
            Upstreams(client, partial(has_ready, ray_handle)),
            gather=partial(_gather, deployments),
            limits=limits_of(self._args),
            metrics=self._metrics,
            replica=serve.get_replica_context().replica_tag,
            plans=protocol_plans(self._args),
        )
        return build_app(backend, self._weights_route(backend, list(deployments)))

    def _weights_route(self, backend: GatewayBackend, deployments: list[str]) -> Endpoint | None:
        """What answers the routes of weights; None for a service without admin keys."""
        if not backend.limits.admin_keys:
            return None
        route = WeightsRoute(
            deployments,
            partial(call_replicas, ray_handle),
            Registry(RayKeyValues()),
            limits=backend.limits,
            bodies=backend.bodies,
        )
        return route.answer

    async def snapshot(self) -> tuple[str, Snapshot]:
        """This replica's id and its metrics."""
        return serve.get_replica_context().replica_tag, self._metrics.snapshot()


async def snapshots(
    handle_of: HandleOf, deployments: Iterable[str]
) -> dict[tuple[str, str], Snapshot]:
    """The metrics of every running replica, by the label of its deployment and its own name. Those
    of the gateway are among them.

    Only replicas that are loaded answer. A replica that has just died is left out.
    """
    labels = {GATEWAY_APP: LABEL, **{name: name for name in deployments}}
    all_answers = await asyncio.gather(*(_all_answers(handle_of, app) for app in labels))
    return {
        (label, replica): snapshot
        for label, answers in zip(labels.values(), all_answers, strict=True)
        for replica, snapshot in answers
    }


async def _gather(deployments: Iterable[str]) -> dict[tuple[str, str], Snapshot]:
    """All metrics that are not of this process: of the replicas, and how many there are."""
    applications = {name: (name, REPLICA) for name in deployments}
    applications[LABEL] = (GATEWAY_APP, GATEWAY)
    of_replicas, of_deployments = await asyncio.gather(
        snapshots(ray_handle, deployments), replica_counts(ray_controller, applications)
    )
    return {**of_replicas, **of_deployments}


async def _all_answers(handle_of: HandleOf, application: str) -> list[tuple[str, Snapshot]]:
    return [answer async for answer in _answers(handle_of, application, "snapshot")]


async def has_ready(handle_of: HandleOf, deployment: str) -> bool:
    """Whether one of a deployment's replicas is loaded and healthy."""
    async with contextlib.aclosing(_answers(handle_of, deployment, "check_health")) as answers:
        async for _ in answers:
            return True
    return False


async def call_replicas(
    handle_of: HandleOf, deployment: str, method: str, arguments: Sequence[Any], within_s: float
) -> list[Any]:
    """What a method of each running replica returns, or the exception of one that does not answer.
    A replica that has died is left out: another takes its place, and starts anew."""
    try:
        replies = await _replies(handle_of, deployment, method, *arguments, within_s=within_s)
    except TimeoutError as error:
        return [error]
    except _GONE as error:
        logger.info("%s: no replica answers (%s)", deployment, type(error).__name__)
        return []
    answers = await asyncio.gather(*replies, return_exceptions=True)
    return [answer for answer in answers if not isinstance(answer, ActorDiedError)]


async def _replies(
    handle_of: HandleOf, application: str, method: str, *arguments: Any, within_s: float
) -> list[asyncio.Future[Any]]:
    """Calls a method of each running replica: one future for each, with a TimeoutError of its own.

    Ray's own way to get the answers has all of them or none. A replica whose node dropped off the
    network keeps silent until Ray has noticed, and here it costs its own answer alone.

    Raises:
        What is in `_GONE`, if no replica could be called.
    """
    async with asyncio.timeout(within_s):
        handle = await on_thread(handle_of, application)
        broadcast = handle.broadcast(method, *arguments)
        replies = await broadcast._fetch_replica_results_async()
    return [asyncio.ensure_future(asyncio.wait_for(each.get_async(), within_s)) for each in replies]


async def _answers(handle_of: HandleOf, application: str, method: str) -> AsyncGenerator[Any, None]:
    """Calls a method of each running replica, and gives what does not raise, as it comes."""
    try:
        tasks = await _replies(handle_of, application, method, within_s=GATHER_TIMEOUT_S)
    except Exception as error:  # whatever Ray raises: it cannot be asked, so it is not ready
        logger.info("%s: no replica answers (%s)", application, type(error).__name__)
        return
    try:
        for task in asyncio.as_completed(tasks):
            try:
                answer = await task
            except Exception as error:  # whatever the method raises
                logger.info("%s: a replica did not answer (%s)", application, type(error).__name__)
                continue
            yield answer
    finally:
        for unfinished in tasks:
            unfinished.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
