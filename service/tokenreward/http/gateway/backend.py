"""The backend of the gateway: the same API for all scorers, answered by the deployments that hold
them.

A body passes through unchanged where one deployment has everything. Otherwise the request is split
and the replies are merged. It knows which scorer lives where, and no models. What needs Ray comes
as plain callables.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from fastapi import Request, Response

from tokenreward.errors import Loading, RequestError
from tokenreward.http.app import Backend
from tokenreward.http.body import for_size, parsed_size
from tokenreward.http.gateway.fanout import Fanout
from tokenreward.http.gateway.scorer_routes import ScorerRoute, find_route
from tokenreward.http.gateway.upstream import LISTING_S, UpstreamCall, Upstreams
from tokenreward.http.gateway.upstream_answers import UpstreamRefusal
from tokenreward.http.guard import refusal
from tokenreward.http.held_requests import HeldRequests
from tokenreward.http.patience import patience_ends, when_possible
from tokenreward.http.plans import ProtocolPlans, log_probs_options, plan_for
from tokenreward.http.protocols import Protocol
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import IncomingRequest, caller_of, headers_of, is_plain
from tokenreward.metrics import REQUESTS, Metrics, Snapshot, render
from tokenreward.wire import RewardsRequest, served_name
from tokenreward.wire.dependencies import dependencies, request_dependencies
from tokenreward.wire.head import RequestHead
from tokenreward.wire.media import JSON, Media
from tokenreward.wire.paths import CALLER_HEADER, REQUEST_ID_HEADER, TOKENIZE_PATH, TRACE_HEADERS
from tokenreward.wire.reply import reply_without_work

Gather = Callable[[], Awaitable[Mapping[tuple[str, str], Snapshot]]]

LABEL = "gateway"  # instead of a deployment's name
# The objects of a body and their copy for sub-requests took 1 to 7 times the body's bytes where we
# measured: 1 for one long text, 2 for many texts, 7 for lists of ids and of spans.
_NUM_COPIES = 2

logger = logging.getLogger(__name__)


class GatewayBackend(Backend):
    """Answers with what the deployments say.

    Args:
        routes: Where each scorer is served.
        upstreams: The deployments.
        gather: Gets the metrics of the replicas that run now, by the label of their deployment and
            their own names. Other replicas of the gateway are among them.
        limits: The limits of requests.
        metrics: Of this replica of the gateway.
        replica: The gateway's own name in the metrics.
        plans: The operator's settings of protocols, by name.
    """

    def __init__(
        self,
        routes: Mapping[str, ScorerRoute],
        upstreams: Upstreams,
        *,
        gather: Gather,
        limits: Limits,
        metrics: Metrics | None = None,
        replica: str = "",
        plans: ProtocolPlans | None = None,
    ) -> None:
        self._metrics = metrics or Metrics(REQUESTS)
        super().__init__(limits, self._metrics.report)
        self._routes = routes
        self._types = {name: route.type for name, route in routes.items()}
        self._deployments = list(dict.fromkeys(route.deployment for route in routes.values()))
        self._upstreams = upstreams
        self._gather = gather
        self._replica = replica
        self._plans = plans or {}

    async def rewards(self, request: Request, protocol: Protocol) -> Response:
        """The answer to a request for rewards.

        The body, what is made of it, and the deployments' replies count as held until the answer
        is ready.
        """
        with self.bodies.extras() as hold:
            call = self._call(request, sends=protocol.reads, wants=protocol.writes, hold=hold)
            deadline = time.monotonic() + call.left_s
            headers = headers_of(request.scope)
            caller = IncomingRequest(request.receive, caller_of(request.scope))
            call.give_up_at = patience_ends(protocol.patience_s, headers, deadline=deadline)
            async with self.bodies.body(
                request.scope, caller, within_s=call.left_s, give_up_at=call.give_up_at
            ) as body:
                size = parsed_size(body)
                async with self.bodies.parsing(size, caller, within_s=call.left_s):
                    work = await self._forward(body, call, protocol)
                if work is None:
                    # Before they are made: a request that waits for room has its body alone.
                    await when_possible(
                        partial(call.hold, _NUM_COPIES * len(body)),
                        give_up_at=call.give_up_at,
                        unless_gone=caller.unless_gone,
                    )
                    async with self.bodies.parsing(size, caller, within_s=call.left_s):
                        rewards_request = await for_size(size, protocol.parse, body)
                    if rewards_request is not None:
                        self.limits.refuse_many_items(len(rewards_request.items))
                    work = self._fan_out(rewards_request, call, protocol, num_bytes=size)
                return await caller.unless_gone(work)

    async def tokens(self, request: Request) -> Response:
        """The ids of a text, by the first deployment that gives log-probabilities, or by the first
        one of all."""
        types = sorted(self._types, key=lambda name: log_probs_options(self._types[name]) is None)
        with self.bodies.extras() as hold:
            call = self._call(request, hold=hold)
            caller = IncomingRequest(request.receive, caller_of(request.scope))
            async with self.bodies.body(request.scope, caller, within_s=call.left_s) as body:
                deployment = self._routes[types[0]].deployment
                work = call.post(deployment, body, path=TOKENIZE_PATH)
                return await caller.unless_gone(work)

    async def scorers(self, request: Request) -> dict[str, Any]:
        """What the deployments list that answer soon; `unavailable` names the others.

        Raises:
            RequestError: Why none of them answers.
        """
        with self.bodies.extras() as hold:
            call = self._call(request, hold=hold, most_s=LISTING_S)
            listings = await asyncio.gather(
                *(call.list_scorers(name) for name in self._deployments), return_exceptions=True
            )
        entries: list[dict[str, Any]] = []
        failures: dict[str, RequestError] = {}
        for deployment, listing in zip(self._deployments, listings, strict=True):
            if isinstance(listing, RequestError):
                logger.warning("`%s` is not listed: %s", deployment, listing.message)
                failures[deployment] = listing
            elif isinstance(listing, BaseException):
                raise listing
            else:
                entries += listing
        if len(failures) == len(self._deployments):
            raise next(iter(failures.values()))
        return {"scorers": entries, "unavailable": list(failures)}

    async def check_ready(self) -> None:
        """Raises Loading, with the deployments that have no replica ready."""
        if missing := await self._upstreams.missing(self._deployments):
            raise Loading(f"not ready: {', '.join(missing)}", retry_after_s=2)

    async def metrics(self) -> bytes:
        """The metrics of all replicas, those of the gateway included. This one's own are there even
        if nobody gathers them, and once."""
        own = {(LABEL, self._replica): self._metrics.snapshot()}
        return render({**await self._gather(), **own})

    def _call(
        self,
        request: Request,
        *,
        sends: Media = JSON,
        wants: Media = JSON,
        hold: Callable[[int], None],
        most_s: float = math.inf,
    ) -> UpstreamCall:
        caller_headers = headers_of(request.scope)
        headers = {
            REQUEST_ID_HEADER: request.state.request_id,
            CALLER_HEADER: caller_of(request.scope),
        }
        for name in ("authorization", *TRACE_HEADERS):
            value = caller_headers.get(name)
            if value is not None and is_plain(value):  # no key of ours has other characters
                headers[name] = value
        limit_s = min(most_s, self.limits.time_limit_s(caller_headers))
        return UpstreamCall(
            self._upstreams, headers=headers, limit_s=limit_s, hold=hold, sends=sends, wants=wants
        )

    async def _forward(
        self, body: bytes, call: UpstreamCall, protocol: Protocol
    ) -> Coroutine[Any, Any, Response] | None:
        """The answer of the deployment that has everything; None if the request must be split.
        Raises RequestError."""
        head = await for_size(parsed_size(body), protocol.head, body)
        if head is not None:
            deployment = self._only_deployment(head)
            if deployment is not None:
                return call.post(deployment, body)
        protocol.plan = plan_for(type(protocol), self._types, self._plans)
        plan = protocol.plan
        if plan is not None and plan.scorer is not None:
            route = self._routes[plan.scorer]
            if not dependencies(plan.options, plan.credit, default=route.score_from):
                # Its replicas know the same settings: they read the body and write the answer.
                return call.post(route.deployment, body, path=protocol.path)
        return None

    def _only_deployment(self, head: RequestHead) -> str | None:
        """The deployment that can answer alone; None if there is none. Raises UnknownScorer,
        InvalidField."""
        param = "scorer" if head.scorer is not None else "scorers"
        routes = {
            name: find_route(self._routes, served_name(name), param=param) for name in head.names
        }
        deployments = {route.deployment for route in routes.values()}
        for name, route in routes.items():
            if request_dependencies(head, name, default=route.score_from):
                return None
        return deployments.pop() if len(deployments) == 1 else None

    async def _fan_out(
        self,
        request: RewardsRequest | None,
        call: UpstreamCall,
        protocol: Protocol,
        *,
        num_bytes: int,
    ) -> Response:
        if request is None:
            reply = reply_without_work(call.request_id)
            return Response(protocol.write(reply), media_type=protocol.writes.name)

        async def attempt() -> bytes:
            num_own = 0

            def hold(num_bytes: int) -> None:
                nonlocal num_own
                call.hold(num_bytes)
                num_own += num_bytes

            fanout = Fanout(
                request,
                self._routes,
                call=call.with_hold(hold),
                num_bytes=num_bytes,
                report=self.report,
            )
            try:
                reply = await fanout.reply()
                return await for_size(fanout.num_reply_bytes, protocol.write, reply)
            except RequestError:
                call.hold(-num_own)  # what another attempt takes again
                raise

        try:
            # Each call to a deployment is held by itself. Here it is for want of memory alone.
            content = await HeldRequests().hold(attempt, give_up_at=call.give_up_at, max_faults=1)
        except UpstreamRefusal as error:  # not raised, as the deployment has counted it
            return refusal(error, protocol)
        return Response(content, headers=protocol.answer_headers, media_type=protocol.writes.name)
