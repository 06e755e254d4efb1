"""Two deployments on tiny checkpoints behind one address, as Ray's proxy mounts them, and the
gateway before them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from fakes import tiny, web
from fakes.scripted import ScriptedDeployment
from tokenreward.config import parse_settings
from tokenreward.deployment.plan import serve_config
from tokenreward.engine import Engine
from tokenreward.engine.slot import Slot
from tokenreward.http.app import build_app
from tokenreward.http.gateway.backend import GatewayBackend
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.gateway.upstream import Upstreams
from tokenreward.http.plans import ProtocolPlans
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.media import media_of
from tokenreward.wire.paths import HOLD_HEADER

UNHELD = {HOLD_HEADER: "0"}  # tests see refusals at once; those of held requests say otherwise
LM = {
    "name": "lm",
    "task": "causal_lm",
    "scorers": [{"type": "endogenous"}, {"type": "constant", "name": "one"}],
}
RM = {
    "name": "rm",
    "task": "reward_model",
    "version": 3,
    "scorers": [
        {"type": "reward_model"},
        {"type": "constant", "name": "two", "options": {"value": 2.0}},
        {"type": "process", "options": {"layout": "skywork"}},
    ],
}
# Shows the tools of a request, too.
TEMPLATE = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + tiny.TEMPLATE
SOURCED: list[dict[str, Any]] = [
    {
        "name": "lm",
        "chat_template": TEMPLATE,
        "task": "causal_lm",
        "version": 2,
        "scorers": [
            {"type": "endogenous"},
            {"type": "constant", "name": "one"},
            {"type": "generation_attention", "name": "free"},
            {
                "type": "generation_attention",
                "name": "spread",
                "options": {"score_from": "reward_model"},
            },
        ],
    },
    {
        "name": "rm",
        "chat_template": TEMPLATE,
        "task": "reward_model",
        "version": 3,
        "scorers": [{"type": "reward_model"}],
    },
    {
        "name": "sft",
        "chat_template": TEMPLATE,
        "task": "causal_lm",
        "version": 4,
        "max_sequence_tokens": 40,
        "scorers": [
            {
                "type": "endogenous",
                "name": "sft",
                "options": {"form": "logprob", "temperature": 0.7},
            },
            {
                "type": "endogenous",
                "name": "soft",
                "options": {"alpha": 2.0, "aggregation": "mean"},
            },
        ],
    },
    {"name": "other", "task": "causal_lm", "scorers": [{"type": "endogenous", "name": "other"}]},
]
ROUTES = {
    "endogenous": ScorerRoute("lm", "endogenous"),
    "one": ScorerRoute("lm", "constant"),
    "two": ScorerRoute("rm", "constant"),
    "reward_model": ScorerRoute("rm", "reward_model"),
    "process": ScorerRoute("rm", "process"),
}
LIMITS = Limits(max_body_bytes=100_000, max_request_items=8, request_timeout_s=20)

Gather = Callable[[], Any]
Gateway = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@contextmanager
def serving(
    *replicas: tuple[dict[str, Any], Path], plans: ProtocolPlans | None = None
) -> Iterator[dict[str, Any]]:
    """Replicas of these settings on these checkpoints, under these settings of protocols. `url`:
    their address. `metrics`, `slots`, `backends`: theirs, by name. `asked`: path, headers and body
    of each POST that reached them."""
    mounts, metrics, asked = [], {}, []
    slots: dict[str, Slot] = {}
    backends: dict[str, ReplicaBackend] = {}
    for settings, folder in replicas:
        name = str(settings["name"])
        metrics[name] = Metrics()
        parsed = DeploymentSettings.model_validate(
            {**settings, "checkpoint": str(folder), "device": "cpu"}
        )
        slot = Slot(Engine.load(parsed, report=metrics[name].report))
        backend = ReplicaBackend(name, slot, metrics=metrics[name], limits=LIMITS, plans=plans)
        slots[name], backends[name] = slot, backend
        mounts.append(Mount(f"/d/{name}", build_app(backend)))
    app = Starlette(routes=mounts)

    async def recorded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            body = await Request(scope, receive).body()
            headers = dict(scope["headers"])
            media = media_of({"content-type": headers.get(b"content-type", b"").decode()})
            with contextlib.suppress(ValueError):  # a replica refuses what is no JSON
                asked.append((scope["path"], headers, media.load(body)))
            messages = iter([{"type": "http.request", "body": body}])
            given = receive

            async def receive() -> Any:
                return next(messages, None) or await given()

        await app(scope, receive, send)

    with web.serving(recorded) as url:
        yield {
            "url": url,
            "metrics": metrics,
            "asked": asked,
            "slots": slots,
            "backends": backends,
        }


@pytest.fixture(scope="session")
def deployments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A language model and a reward model."""
    folders = [
        tiny.save(tmp_path_factory.mktemp(str(each["name"])), task=str(each["task"]))
        for each in (LM, RM)
    ]
    with serving((LM, folders[0]), (RM, folders[1])) as replicas:
        yield replicas


@pytest.fixture
def gateway(deployments: dict[str, Any]) -> Gateway:
    """Opens a client of a gateway: `gateway(upstream=URL, loaded={...}, limits=...)`.

    `gateway.probes`: the deployments that were asked whether they are ready. `gateway.backend`: the
    backend of the one that was opened last.
    """
    return opener(deployments, ROUTES)


@pytest.fixture(scope="session")
def sourced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Four deployments whose scorers ask each other; `other` has a tokenizer of its own. `folders`:
    the checkpoints."""
    folders = {}
    for seed, settings in enumerate(SOURCED):
        folder = tmp_path_factory.mktemp(settings["name"])
        folders[settings["name"]] = tiny.save(folder, task=settings["task"], seed=seed)
    with_other_words(folders["other"])
    with serving(*((settings, folders[settings["name"]]) for settings in SOURCED)) as replicas:
        yield {**replicas, "folders": folders}


def with_other_words(folder: Path) -> None:
    """Two tokens change places."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["x"], words["y"] = words["y"], words["x"]
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def sourced_gateway(sourced: dict[str, Any]) -> Gateway:
    """The gateway of `sourced`, with the routes that its operator's config plans."""
    sourced["asked"].clear()
    settings = parse_settings(
        {"deployments": [{"checkpoint": "x", **settings} for settings in SOURCED]}
    )
    (planned,) = [
        app for app in serve_config(settings)["applications"] if app["route_prefix"] == "/"
    ]
    return opener(
        sourced, {name: ScorerRoute(**route) for name, route in planned["args"]["routes"].items()}
    )


@pytest.fixture(scope="session")
def serve() -> Any:
    """`serving`, for tests with deployments of their own."""
    return serving


@pytest.fixture
def open_gateway() -> Any:
    """`opener`, for the same."""
    return opener


def opener(deployments: dict[str, Any], routes: Mapping[str, ScorerRoute]) -> Gateway:
    """What opens a client of a gateway before these replicas."""

    @asynccontextmanager
    async def opened(
        upstream: str = deployments["url"],
        *,
        loaded: Mapping[str, Any] | None = None,
        limits: Limits = LIMITS,
        plans: ProtocolPlans | None = None,
    ) -> AsyncIterator[httpx.AsyncClient]:
        def snapshots() -> Mapping[str, Any]:
            if loaded is not None:
                return loaded
            return {
                name: {f"{name}-r1": metrics.snapshot()}
                for name, metrics in deployments["metrics"].items()
            }

        async def gather() -> dict[tuple[str, str], Any]:
            return {
                (name, replica): snapshot
                for name, replicas in snapshots().items()
                for replica, snapshot in replicas.items()
            }

        async def has_ready(deployment: str) -> bool:
            probes.append(deployment)
            return bool(snapshots().get(deployment))

        probes = opened.probes = []  # type: ignore[attr-defined]
        async with httpx.AsyncClient(base_url=upstream, timeout=30, trust_env=False) as inner:
            backend = GatewayBackend(
                routes,
                Upstreams(inner, has_ready),
                gather=gather,
                limits=limits,
                replica="gateway-1",
                plans=plans,
            )
            opened.backend = backend  # type: ignore[attr-defined]
            async with (
                web.serving_here(build_app(backend)) as url,
                httpx.AsyncClient(base_url=url, timeout=20, headers=UNHELD) as client,
            ):
                yield client

    return opened


@pytest.fixture
def edge() -> Iterator[ScriptedDeployment]:
    edge = ScriptedDeployment()
    with web.serving(edge) as edge.url:  # type: ignore[attr-defined]
        yield edge


@pytest.fixture
def client(gateway: Any, edge: Any) -> Callable[[], Any]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[httpx.AsyncClient]:
        async with gateway(edge.url) as client:
            yield client

    return opened
