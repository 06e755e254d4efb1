"""What pushes of weights need at their edges: a store in memory, engines that only have a version,
and the replicas of a deployment, called without Ray."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx

from tokenreward.deployment.follower import Follower
from tokenreward.deployment.reloader import Reloader
from tokenreward.engine.slot import Slot
from tokenreward.errors import InvalidField
from tokenreward.http.app import build_app
from tokenreward.http.gateway.backend import GatewayBackend
from tokenreward.http.gateway.registry import Registry
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.gateway.upstream import Upstreams
from tokenreward.http.gateway.weights import WeightsRoute
from tokenreward.http.request_limits import Limits
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.weights import Weights


class MemoryStore:
    """A key-value store, which a test may make fail, or slow."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.error: Exception | None = None
        self.delays_s: dict[str, float] = {}  # by method

    def get(self, key: str) -> bytes | None:
        self._visit("get")
        return self.values.get(key)

    def put(self, key: str, value: bytes, *, overwrite: bool) -> bool:
        self._visit("put")
        if not overwrite and key in self.values:
            return False
        self.values[key] = value
        return True

    def keys(self, prefix: str) -> list[str]:
        self._visit("keys")
        return [key for key in self.values if key.startswith(prefix)]

    def delete(self, key: str) -> None:
        self._visit("delete")
        self.values.pop(key, None)

    def _visit(self, method: str) -> None:
        time.sleep(self.delays_s.get(method, 0.0))
        if self.error is not None:
            raise self.error


def settings_of(weights: Weights) -> DeploymentSettings:
    """The settings of the deployment `lm`, with these weights."""
    scorers = [{"type": "endogenous"}]
    fields = {"name": "lm", "checkpoint": weights.checkpoint, "task": "causal_lm"}
    settings = DeploymentSettings.model_validate({**fields, "scorers": scorers})
    return settings.with_weights(weights)


class VersionedEngine:
    """An engine that changes its version and computes nothing."""

    def __init__(self, settings: DeploymentSettings) -> None:
        self.settings = self.declared = settings
        self.prepared: Weights | None = None
        self.refusal: Exception | None = None
        self.fault: Exception | None = None  # of a commit
        self.gate: asyncio.Event | None = None  # `prepare` waits for it
        self.num_prepared = 0
        self.num_discarded = 0
        self.is_closed = False

    @property
    def version(self) -> int:
        return self.settings.version

    @property
    def served(self) -> Weights:
        return self.settings.weights

    async def prepare(self, weights: Weights) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        self.num_prepared += 1
        self.prepared = weights

    async def commit(self, version: int) -> None:
        assert self.prepared is not None
        assert self.prepared.version == version
        if self.fault is not None:
            raise self.fault
        self.settings, self.prepared = self.declared.with_weights(self.prepared), None

    def discard(self) -> None:
        self.prepared = None
        self.num_discarded += 1

    def check_health(self) -> None:
        pass

    async def close(self) -> None:
        self.is_closed = True


class FakeReplica:
    """A replica of a deployment: an engine and what follows pushes with it.

    Attributes:
        refusal: Why no engine can be loaded.
        absent: Checkpoints of which no engine can be loaded.
        loads: The settings of all loads that were begun.
        loading: A load waits for it.
        gauges: The last value of each metric.
        other_versions: What it hears that others serve.
    """

    def __init__(self, name: str, registry: Registry, declared: Weights) -> None:
        self.slot = Slot(VersionedEngine(settings_of(declared)))  # type: ignore[arg-type]
        self.name = name
        self.refusal: Exception | None = None
        self.absent: set[str] = set()
        self.loads: list[DeploymentSettings] = []
        self.loading = threading.Event()
        self.loading.set()
        self.gauges: dict[str, float] = {}
        reloader = Reloader(
            self.slot, load=self.load, put=self.slot.put, report=self.gauges.__setitem__
        )
        self.reloader = reloader
        self.other_versions: list[int | None] = []
        self.follower = Follower(
            self.slot,
            lambda: registry.pushed("lm"),
            reloader,
            self.gauges.__setitem__,
            other_versions=self._others,
        )
        self.follower.declared = settings_of(declared)
        self.is_dead = False

    async def _others(self) -> list[int | None]:
        return self.other_versions

    @property
    def engine(self) -> VersionedEngine:
        """The one that serves."""
        return self.slot.engine  # type: ignore[return-value]

    def load(self, settings: DeploymentSettings) -> Any:
        self.loads.append(settings)
        assert self.loading.wait(20)
        if self.refusal is not None:
            raise self.refusal
        if settings.checkpoint in self.absent:
            raise InvalidField(f"`{settings.checkpoint}` is no folder", param="checkpoint")
        self.gauges["model_version"] = settings.version
        return VersionedEngine(settings)


class FakeDeployment:
    """The deployment `lm` with several replicas, as `broadcast` reaches them."""

    def __init__(self, num_replicas: int = 2, declared: Weights | None = None) -> None:
        self.store = MemoryStore()
        self.registry = Registry(self.store)
        self.declared = declared or Weights(checkpoint="/declared", version=1)
        self.replicas = [
            FakeReplica(f"r{number}", self.registry, self.declared)
            for number in range(num_replicas)
        ]
        self.calls: list[str] = []
        self.silent_at: set[str] = set()  # methods that the first replica does not answer
        self.delays_s: dict[str, float] = {}  # of the answers to a method

    async def broadcast(
        self, deployment: str, method: str, arguments: Sequence[Any], within_s: float
    ) -> list[Any]:
        assert deployment == "lm"
        self.calls.append(method)
        await asyncio.sleep(self.delays_s.get(method, 0.0))
        answers: list[Any] = []
        for number, replica in enumerate(self.replicas):
            if replica.is_dead:
                continue
            if number == 0 and method in self.silent_at:
                answers.append(TimeoutError())
                continue
            report = await call(replica.follower, method, arguments)
            answers.append({"replica": replica.name, **report})
        return answers

    @property
    def versions(self) -> list[int]:
        return [replica.engine.version for replica in self.replicas]

    @property
    def prepared(self) -> list[Weights | None]:
        return [replica.engine.prepared for replica in self.replicas]


async def call(follower: Follower, method: str, arguments: Sequence[Any]) -> Any:
    """What `Replica` does with a call."""
    match method:
        case "prepare_weights":
            weights, within_s = arguments
            return await follower.prepare(Weights(**weights), within_s=within_s)
        case "commit_weights":
            weights, within_s = arguments
            return await follower.commit(Weights(**weights), within_s=within_s)
        case "discard_weights":
            return follower.discard(*arguments)
        case "weights_status":
            return follower.status()
    raise AssertionError(method)


def backend_of(**keys: Any) -> GatewayBackend:
    """A gateway with these keys and no deployment to reach."""
    limits = Limits(max_body_bytes=100_000, max_request_items=8, request_timeout_s=20, **keys)

    async def nothing(*_: Any) -> Any:
        return {}

    routes = {"endogenous": ScorerRoute("lm", "endogenous")}
    upstreams = Upstreams(httpx.AsyncClient(base_url="http://127.0.0.1:9"), nothing)
    return GatewayBackend(routes, upstreams, gather=nothing, limits=limits)


def app_of(deployment: FakeDeployment, **keys: Any) -> Any:
    """The gateway of a deployment with these keys."""
    backend = backend_of(**keys)
    route = WeightsRoute(
        ["lm"],
        deployment.broadcast,
        deployment.registry,
        limits=backend.limits,
        bodies=backend.bodies,
    )
    return build_app(backend, route.answer)
