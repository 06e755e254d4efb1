"""Two deployments on tiny checkpoints behind one address, as Ray's proxy mounts them, and the front before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import tiny
import web
from tokenreward.engine import Engine
from tokenreward.gateway import build_app
from tokenreward.guard import Rules
from tokenreward.ingress import Slot
from tokenreward.ingress import build_app as build_replica
from tokenreward.metrics import Metrics
from tokenreward.settings import DeploymentSettings

ROUTES = {"endogenous": "lm", "one": "lm", "two": "rm", "reward_model": "rm"}
LM = {"name": "lm", "task": "causal_lm", "scorers": [{"type": "endogenous"}, {"type": "constant", "name": "one"}]}
RM = {
    "name": "rm",
    "task": "reward_model",
    "version": 3,
    "scorers": [{"type": "reward_model"}, {"type": "constant", "name": "two", "options": {"value": 2.0}}],
}
RULES = Rules(max_body_bytes=100_000, max_request_items=8, request_timeout_s=20)

Gather = Callable[[], Any]
Front = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def deployments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """`url`: their address. `metrics`: theirs, by name."""
    mounts, metrics = [], {}
    for settings in (LM, RM):
        name = str(settings["name"])
        folder = tiny.save(tmp_path_factory.mktemp(name), task=str(settings["task"]))
        metrics[name], slot = Metrics(), Slot()
        parsed = DeploymentSettings.model_validate({**settings, "checkpoint": str(folder), "device": "cpu"})
        slot._engine = Engine.load(parsed, report=metrics[name].report)
        mounts.append(Mount(f"/d/{name}", build_replica(name, slot, metrics=metrics[name], rules=RULES)))
    with ExitStack() as stack:
        url = stack.enter_context(web.serving(Starlette(routes=mounts)))
        yield {"url": url, "metrics": metrics}


@pytest.fixture
def front(deployments: dict[str, Any]) -> Front:
    """Opens a client of a front: `front(upstream=URL, loaded={...}, rules=...)`. `front.asked`: for readiness."""

    @asynccontextmanager
    async def opened(
        upstream: str = deployments["url"], *, loaded: Mapping[str, Any] | None = None, rules: Rules = RULES
    ) -> AsyncIterator[httpx.AsyncClient]:
        async def gather() -> Mapping[str, Any]:
            snapshots = {name: {f"{name}-r1": metrics.snapshot()} for name, metrics in deployments["metrics"].items()}
            return snapshots if loaded is None else loaded

        async def has_ready(deployment: str) -> bool:
            asked.append(deployment)
            return bool((await gather()).get(deployment))

        asked = opened.asked = []  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=upstream, timeout=30, trust_env=False) as inner:
            app = build_app(ROUTES, inner, gather=gather, has_ready=has_ready, rules=rules, replica="front-1")
            async with web.serving_here(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
                yield client

    return opened
