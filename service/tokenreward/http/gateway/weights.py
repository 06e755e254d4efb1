"""The routes that change the weights of a deployment and show them, for callers with an admin key.

    prepare on all replicas -> record in the registry -> commit on all replicas

Until all replicas have prepared, nothing has changed, and a failure leaves nothing behind. From the
record on the push is decided: a replica that misses the commit catches up by itself. This module
knows neither Ray nor models: replicas and the registry come as plain callables.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

from fastapi import Request, Response

from tokenreward.errors import (
    REQUEST_ERRORS,
    DeadlineExceededError,
    InternalError,
    Loading,
    UnknownRoute,
    VersionConflict,
    quotable,
)
from tokenreward.http.body import BodyBudget
from tokenreward.http.gateway.push_turn import registered, turn_of
from tokenreward.http.gateway.registry import Registry
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import IncomingRequest, caller_of, headers_of
from tokenreward.wire.media import JSON
from tokenreward.wire.reply import ErrorDetail
from tokenreward.wire.weights import (
    DeploymentWeights,
    PushReply,
    ReplicaWeights,
    Weights,
    parse_weights,
)

STATUS_S = 5.0
_COMMIT_S = 30.0  # a replica that is in a longer batch has changed its weights at the end of it
_RECORD_S = 2.0  # it takes some milliseconds, and nobody likes to be left in doubt
_RETRY_AFTER_S = 1.0
_REPLICA_SHARE = 0.95

# Calls a method of each replica, with these arguments, within so many seconds. Replicas that have
# died are left out; one that fails otherwise gives the exception.
Broadcast = Callable[[str, str, Sequence[Any], float], Awaitable[list[Any]]]

logger = logging.getLogger(__name__)


class WeightsRoute:
    """Answers `GET` and `POST` of the weights of each deployment.

    Args:
        deployments: The deployments' names.
        broadcast: Calls replicas.
        registry: Where pushes are recorded.
        limits: The limits of requests.
        bodies: How many bytes of requests the process holds.
    """

    def __init__(
        self,
        deployments: Collection[str],
        broadcast: Broadcast,
        registry: Registry,
        *,
        limits: Limits,
        bodies: BodyBudget,
    ) -> None:
        self._deployments = deployments
        self._broadcast = broadcast
        self._registry = registry
        self._limits = limits
        self._bodies = bodies
        self._pushes: set[asyncio.Future[PushReply]] = set()

    async def answer(self, request: Request) -> Response:
        """The answer to a request on the route. Raises RequestError."""
        deployment = request.path_params["name"]
        if deployment not in self._deployments:
            raise UnknownRoute(
                f"no deployment `{quotable(deployment)}`; there are {', '.join(self._deployments)}"
            )
        began = time.monotonic()
        limit_s = self._limits.time_limit_s(headers_of(request.scope))
        if request.method != "POST":
            within_s = min(limit_s, STATUS_S)
            content = asdict(await self._weights_of(deployment, within_s=within_s))
            return Response(JSON.dump(content), media_type=JSON.name)
        caller = IncomingRequest(request.receive, caller_of(request.scope))
        async with self._bodies.body(request.scope, caller, within_s=limit_s) as body:
            weights = parse_weights(body)
        # A caller that hangs up does not leave a push half done.
        work = asyncio.ensure_future(self._push(deployment, weights, began + limit_s))
        self._pushes.add(work)
        work.add_done_callback(self._pushes.discard)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        reply = await asyncio.shield(work)
        return Response(JSON.dump(asdict(reply)), media_type=JSON.name)

    async def _weights_of(self, deployment: str, *, within_s: float) -> DeploymentWeights:
        """What a deployment is to serve and serves. Raises Loading if the registry is silent."""
        pushed = await registered(self._registry.pushed, deployment, within_s=within_s)
        answers = await self._broadcast(deployment, "weights_status", (), min(STATUS_S, within_s))
        states = [answer for answer in answers if not isinstance(answer, BaseException)]
        declared = [Weights(**state["declared"]) for state in states if state["declared"]]
        return DeploymentWeights(
            pushed=pushed,
            declared=max(declared, key=lambda weights: weights.version, default=None),
            replicas=_replicas(states),
        )

    async def _push(self, deployment: str, weights: Weights, deadline: float) -> PushReply:
        """Changes the weights of all replicas or of none. Raises RequestError."""
        began = time.monotonic()
        async with turn_of(self._registry, deployment, within_s=_left_s(deadline)) as check_turn:
            now = await self._weights_of(deployment, within_s=_left_s(deadline))
            _left_s(deadline)  # replicas that had no time to answer are not missing
            if now.declared is None:
                raise _no_replica(deployment)
            if _is_new(weights, now):
                try:
                    replicas = await self._prepare(deployment, weights, deadline)
                    await check_turn()
                    within_s = max(_RECORD_S, _left_s(deadline))
                    await registered(self._registry.record, deployment, weights, within_s=within_s)
                except BaseException:
                    # If it was recorded all the same, replicas catch up with it.
                    await self._broadcast(
                        deployment, "discard_weights", (weights.version,), STATUS_S
                    )
                    raise
                now = replace(now, replicas=replicas)
            arguments = (asdict(weights), _REPLICA_SHARE * _COMMIT_S)
            answers = await self._broadcast(deployment, "commit_weights", arguments, _COMMIT_S)
        return PushReply(
            version=weights.version,
            replicas=_with_missing(_replicas(answers), now.replicas),
            seconds=time.monotonic() - began,
        )

    async def _prepare(
        self, deployment: str, weights: Weights, deadline: float
    ) -> list[ReplicaWeights]:
        """Has all replicas prepare. Raises the error of one that cannot."""
        within_s = _left_s(deadline)
        # Replicas say that they are late, and which one is, before nobody waits for them.
        arguments = (asdict(weights), _REPLICA_SHARE * within_s)
        answers = await self._broadcast(deployment, "prepare_weights", arguments, within_s)
        replicas = _replicas(answers)
        if not replicas:
            raise _no_replica(deployment)
        details = [replica.error for replica in replicas if replica.error is not None]
        if not details:
            return replicas
        detail = min(details, key=lambda each: each.retryable)  # what no repetition mends is first
        logger.warning("%s: no version %d: %s", deployment, weights.version, detail.message)
        kind = REQUEST_ERRORS.get(detail.code, InternalError)
        raise kind(detail.message, param=detail.param, retry_after_s=_RETRY_AFTER_S)


def _left_s(deadline: float) -> float:
    """Seconds to the caller's deadline. Raises DeadlineExceededError."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceededError("the deadline passed before the push; nothing has changed")
    return left_s


def _no_replica(deployment: str) -> Loading:
    return Loading(f"`{deployment}` has no replica that answers", retry_after_s=2)


def _is_new(weights: Weights, now: DeploymentWeights) -> bool:
    """Whether weights are to be pushed; False if they are the deployment's newest already.

    Raises:
        VersionConflict: The version is passed, or others have it.
    """
    candidates = [each for each in (now.pushed, now.declared) if each is not None]
    # Of two with one version it is the pushed one, which serves.
    newest = max(candidates, key=lambda each: each.version)
    if weights.version > newest.version:
        return True
    if weights == newest:
        return False
    if weights.version == newest.version:
        raise VersionConflict(
            f"version {weights.version} is {_place(newest)}, and cannot be {_place(weights)}",
            param="version",
        )
    origin = "pushed" if newest is now.pushed else "declared by the settings"
    raise VersionConflict(
        f"must be greater than {newest.version}, which was {origin}, got {weights.version}",
        param="version",
    )


def _place(weights: Weights) -> str:
    """Where weights lie, in words."""
    text = f"`{weights.checkpoint}`"
    if weights.adapter is not None:
        text += f" with adapter `{weights.adapter}`"
    if weights.reference_checkpoint is not None:
        text += f" and reference `{weights.reference_checkpoint}`"
    return text


def _replicas(answers: Sequence[Any]) -> list[ReplicaWeights]:
    """What replicas reported. An exception is a replica whose name is not known."""
    replicas = []
    for answer in answers:
        if isinstance(answer, BaseException):
            reason = f"a replica did not answer ({type(answer).__name__})"
            detail = ErrorDetail.of(Loading(reason))
            replicas.append(ReplicaWeights(replica="", version=None, error=detail))
            continue
        error = answer["error"]
        detail_or_none = None if error is None else ErrorDetail(**error)
        replicas.append(
            ReplicaWeights(
                replica=answer["replica"], version=answer["version"], error=detail_or_none
            )
        )
    return replicas


def _with_missing(
    committed: Sequence[ReplicaWeights], expected: Sequence[ReplicaWeights]
) -> list[ReplicaWeights]:
    """The replicas that answered the commit, and those that prepared and did not."""
    names = {replica.replica for replica in committed}
    detail = ErrorDetail.of(Loading("it did not answer the commit; it catches up if it lives"))
    missing = [
        ReplicaWeights(replica=replica.replica, version=None, error=detail)
        for replica in expected
        if replica.replica not in names
    ]
    return [replica for replica in committed if replica.replica] + missing
