"""The backend of one replica: a body is read, parsed, given to the engine, and its reply written.

It knows one deployment's engine and nothing of other replicas or of Ray, which mounts the
application at `/d/{deployment}`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from fastapi import Request, Response

from tokenreward.engine.slot import Slot
from tokenreward.errors import DeadlineExceededError, Loading
from tokenreward.http.app import Backend
from tokenreward.http.body import for_size, parsed_size
from tokenreward.http.held_requests import HeldRequests
from tokenreward.http.patience import patience_ends, when_possible
from tokenreward.http.plans import ProtocolPlans, plan_for
from tokenreward.http.protocols import Protocol
from tokenreward.http.protocols._tokenize import read_texts, tokenize
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import IncomingRequest, caller_of, headers_of
from tokenreward.metrics import Metrics, render
from tokenreward.wire import Reply, RewardsRequest
from tokenreward.wire.media import JSON
from tokenreward.wire.paths import REWARDS_PATH, deployment_prefix
from tokenreward.wire.reply import TABLES, reply_without_work

_TOKEN_BYTES = 100  # of a reply, about, for a token with its text, its span and its reward
_NUMBER_BYTES = 20  # for a number of a table
_MARGIN_S = 0.1

logger = logging.getLogger(__name__)


class ReplicaBackend(Backend):
    """Answers with the engine that is current when a request comes.

    Args:
        deployment: The deployment's name.
        slot: Holds the engine. It is empty while the weights load.
        metrics: Of this replica.
        limits: The limits of requests.
        plans: The operator's settings of protocols, by name.
    """

    def __init__(
        self,
        deployment: str,
        slot: Slot,
        *,
        metrics: Metrics,
        limits: Limits,
        plans: ProtocolPlans | None = None,
    ) -> None:
        super().__init__(limits, metrics.report)
        self._plans = plans or {}
        self._deployment = deployment
        self._slot = slot
        self._line = HeldRequests()
        self._metrics = metrics

    async def rewards(self, request: Request, protocol: Protocol) -> Response:
        """The answer to a request for rewards."""
        headers = headers_of(request.scope)
        caller = IncomingRequest(request.receive, caller_of(request.scope))
        deadline = time.monotonic() + self.limits.time_limit_s(headers)
        give_up_at = patience_ends(protocol.patience_s, headers, deadline=deadline)
        types = await when_possible(
            self._types, give_up_at=give_up_at, unless_gone=caller.unless_gone
        )
        protocol.plan = plan_for(type(protocol), types, self._plans)
        left_s = deadline - time.monotonic()
        async with self.bodies.body(
            request.scope, caller, within_s=left_s, give_up_at=give_up_at
        ) as body:
            num_bytes, size = len(body), parsed_size(body)
            async with self.bodies.parsing(size, caller, within_s=deadline - time.monotonic()):
                rewards_request = await for_size(size, protocol.parse, body)
            del body  # scoring takes a while
        if rewards_request is not None:
            self.limits.refuse_many_items(len(rewards_request.items))

        async def attempt() -> bytes:
            if rewards_request is None:
                return protocol.write(reply_without_work(request.state.request_id))
            if rewards_request.wait_for_version_s is not None:
                hold(num_bytes)
                await self._wait_for_version(rewards_request, deadline)
                hold(-num_bytes)
            reply = await self._score(request, rewards_request, deadline)
            return await for_size(_num_bytes(reply), protocol.write, reply)

        with self.bodies.extras() as hold:
            work = self._line.hold(
                attempt,
                give_up_at=give_up_at,
                caller=caller.name,
                size=num_bytes,
                before_pause=partial(hold, num_bytes),
            )
            content = await caller.unless_gone(work)
        headers = {**protocol.marks, **protocol.answer_headers}
        return Response(content, headers=headers, media_type=protocol.writes.name)

    def _types(self) -> dict[str, str]:
        """The type of each scorer that is served, by name. Raises Loading."""
        return {name: scorer.type for name, scorer in self._slot.engine.scorers.items()}

    async def _wait_for_version(self, request: RewardsRequest, deadline: float) -> None:
        """Returns once the weights are as new as the request wants them, or when it waits no
        longer."""
        # Before the deadline, so that the caller is told the version, and not that time is up.
        left_s = deadline - time.monotonic() - _MARGIN_S
        within_s = max(0.0, min(request.wait_for_version_s or 0.0, left_s))
        await self._slot.wait_for_version(request.min_version or 0, within_s=within_s)

    async def _score(
        self, request: Request, rewards_request: RewardsRequest, deadline: float
    ) -> Reply:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError("the deadline passed before the request could be scored")
        with self._slot.lease() as engine:
            return await engine.score(
                rewards_request,
                request_id=request.state.request_id,
                timeout_s=left_s,
                caller=caller_of(request.scope),
            )

    async def tokens(self, request: Request) -> Response:
        """The ids of a text, by the engine's tokenizer."""
        engine = self._slot.engine
        limit_s = self.limits.time_limit_s(headers_of(request.scope))
        deadline = time.monotonic() + limit_s
        max_tokens = engine.describe()[0]["limits"]["max_sequence_tokens"]
        caller = IncomingRequest(request.receive, caller_of(request.scope))
        async with self.bodies.body(request.scope, caller, within_s=limit_s) as body:
            size = parsed_size(body)
            async with self.bodies.parsing(size, caller, within_s=deadline - time.monotonic()):
                content = await for_size(size, read_texts, body)
            # The text is about as large as the body, whose share is held while it waits here.
            work = engine.preprocess.threads.run(
                tokenize, content, engine.tokenizer, max_tokens, caller=caller.name
            )
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    answer = await caller.unless_gone(work)
            except TimeoutError:
                raise DeadlineExceededError(f"not tokenised within {limit_s:g} s") from None
        return Response(answer, media_type=JSON.name)

    async def scorers(self, request: Request) -> dict[str, Any]:
        """What the engine lists, with the route and the limits of HTTP."""
        route = deployment_prefix(self._deployment) + REWARDS_PATH
        limits = {
            "max_body_bytes": self.limits.max_body_bytes,
            "max_request_items": self.limits.max_request_items,
        }
        entries = self._slot.engine.describe()
        for entry in entries:
            entry["route"], entry["limits"] = route, {**entry["limits"], **limits}
        return {"scorers": entries}

    async def check_ready(self) -> None:
        """Raises Loading while there is no engine, or if it is not healthy."""
        engine = self._slot.engine
        try:
            engine.check_health()
        except Exception as error:
            logger.warning("not ready: %s", error)
            raise Loading(f"`{self._deployment}` is not healthy and will be replaced") from None

    async def metrics(self) -> bytes:
        """This replica's metrics alone."""
        return render({(self._deployment, ""): self._metrics.snapshot()})


def _num_bytes(reply: Reply) -> int:
    """About how long a reply is as JSON."""
    num_bytes = reply.usage.response_tokens * _TOKEN_BYTES
    for item in reply.items:
        for result in item.results():
            tables = [getattr(result, name) for name in TABLES]
            num_bytes += sum(_NUMBER_BYTES * table.size for table in tables if table is not None)
    return num_bytes
