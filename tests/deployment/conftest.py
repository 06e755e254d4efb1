"""A replica without Ray. Ray's own modules warn of things that are deprecated in pydantic when they
are first imported."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast

import pytest
from uvicorn.protocols.websockets import auto

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.serve.schema  # noqa: F401

from fakes.pushes import MemoryStore
from tokenreward.deployment.replica import Replica
from tokenreward.http.gateway.registry import Registry
from tokenreward.metrics import PREFIX
from tokenreward.settings import DeploymentSettings


@pytest.fixture
def this_process() -> Iterator[None]:
    """As it was, afterwards."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    environment = dict(os.environ)
    ours, websockets = logging.getLogger("tokenreward"), auto.AutoWebSocketsProtocol
    parent = ours.parent
    yield
    ours.parent = parent
    auto.AutoWebSocketsProtocol = websockets
    gc.unfreeze()
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    os.environ.clear()
    os.environ.update(environment)


class Alone:
    """The peers of a replica that has none."""

    address = "this"

    def __init__(self, deployment: str) -> None:
        pass

    async def addresses(self) -> list[str]:
        return [self.address]


class GatedReplica(Replica.func_or_class.__mro__[1]):  # type: ignore[misc]
    """The class that Ray wraps, without Ray, whose loads a test may hold up.

    Attributes:
        gate: A load waits for it at its start.
        loads: The checkpoints of all loads that have begun.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        self.gate = threading.Event()
        self.gate.set()
        self.loads: list[str] = []

    def load(self, settings: DeploymentSettings) -> Any:
        self.loads.append(settings.checkpoint)
        assert self.gate.wait(60)
        return super().load(settings)

    def gauge(self, name: str) -> float:
        """The value of a metric without labels."""
        samples = [each for family in self._metrics.snapshot() for each in family["samples"]]
        return next(value for sample, _, value in samples if sample == PREFIX + name)


@pytest.fixture
def replica(this_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    store = MemoryStore()
    monkeypatch.setattr("tokenreward.deployment.replica.RayKeyValues", lambda: store)
    monkeypatch.setattr("tokenreward.deployment.replica.RayPeers", Alone)
    limits = {"max_body_bytes": 1000, "max_request_items": 8, "request_timeout_s": 30.0}
    deployment = {
        "name": "lm",
        "task": "causal_lm",
        "device": "cpu",
        "scorers": [{"type": "endogenous"}],
    }
    replica = GatedReplica({"limits": limits, "api_keys_file": None, "deployment": deployment})
    replica.registry, replica.others, replica.num_loaded = Registry(store), [], 0

    async def call_replicas(*_: Any) -> list[Any]:
        return list(replica.others)

    async def num_loaded(*_: Any) -> int | None:
        return cast(int | None, replica.num_loaded)

    monkeypatch.setattr("tokenreward.deployment.replica.call_replicas", call_replicas)
    monkeypatch.setattr("tokenreward.deployment.replica.num_loaded", num_loaded)
    yield replica
    replica.gate.set()
