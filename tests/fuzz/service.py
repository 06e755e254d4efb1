"""What is fuzzed: two replicas on tiny checkpoints and a gateway, behind one HTTP server; and valid
requests to every route of theirs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from fakes import tiny, web
from tokenreward.engine import Engine
from tokenreward.engine.slot import Slot
from tokenreward.http.app import build_app
from tokenreward.http.gateway.backend import GatewayBackend
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.gateway.upstream import Upstreams
from tokenreward.http.protocols import find_protocols
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.settings import DeploymentSettings

PREFIXES = ("", "/d/lm", "/d/rm")
_LIMITS = Limits(max_body_bytes=200_000, max_request_items=64, request_timeout_s=20)
_SCORERS: dict[str, list[dict[str, Any]]] = {
    "lm": [
        {"type": "endogenous"},
        {"type": "logprob"},
        {"type": "entropy"},
        {"type": "treg"},
        {"type": "generation_attention"},
        {"type": "generative", "options": {"yes": ["Y"], "no": ["N"]}},
    ],
    "rm": [
        {"type": "reward_model"},
        {"type": "attention_dense"},
        {"type": "process", "options": {"layout": "skywork"}},
        {"type": "constant"},
    ],
}
_TASKS = {"lm": "causal_lm", "rm": "reward_model"}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of the service meanwhile. The checkpoints are written to the folder."""
    app = Starlette()
    with web.serving(app) as url:
        routes, mounts = {}, []
        for name, scorers in _SCORERS.items():
            checkpoint = tiny.save(folder / name, task=_TASKS[name])
            settings = DeploymentSettings.model_validate(
                {
                    "name": name,
                    "checkpoint": str(checkpoint),
                    "task": _TASKS[name],
                    "device": "cpu",
                    "scorers": scorers,
                    "max_queued_tokens": 20_000,
                }
            )
            metrics = Metrics()
            slot = Slot(Engine.load(settings, report=metrics.report))
            backend = ReplicaBackend(name, slot, metrics=metrics, limits=_LIMITS)
            mounts.append(Mount(f"/d/{name}", build_app(backend)))
            routes.update({each["type"]: ScorerRoute(name, each["type"]) for each in scorers})

        async def has_ready(deployment: str) -> bool:
            return True

        async def gather() -> dict[str, Any]:
            return {}

        # Kept connections would outlive the server's loop.
        limits = httpx.Limits(max_keepalive_connections=0)
        client = httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, limits=limits)  # noqa: S113
        gateway = GatewayBackend(
            routes, Upstreams(client, has_ready), gather=gather, limits=_LIMITS
        )
        app.router.routes += [*mounts, Mount("/", build_app(gateway))]
        yield url


def valid_bodies() -> list[tuple[str, Any]]:
    """A path and a body each: the example of every protocol, and requests of our own to every
    scorer, with every field of an item."""
    bodies = [
        (path, json.loads(protocol.example))
        for path, protocol in find_protocols().items()
        if protocol.example
    ]
    bodies.append(("/tokenize", {"prompt": "2+2?", "return_token_strs": True}))
    messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "2+2?"}]
    items: list[dict[str, Any]] = [
        {"prompt": "2+2?", "response": "It is 4.", "spans": [[0, 6], [6, 8]], "mask": [1, 0]},
        {"prompt": messages, "response": "It\n\nis 4.", "steps": ["It", "is 4."]},
        {"prompt": [5, 6], "response": [7, 8, 9], "policy_logprobs": [-0.1, -0.2, -0.3]},
        {"prompt": {"ids_b64": "BQAAAA=="}, "response": {"ids_b64": "BQAAAA=="}, "score": 0.5},
        {"prompt": "", "response": "<|user|>a<|end|>\n<|assistant|>b", "whole": "conversation"},
        {"prompt": messages, "response": "b", "tools": [{"name": "f"}], "finished": True},
    ]
    options: dict[str, dict[str, Any]] = {
        "endogenous": {"form": "logprob", "temperature": 0.7},
        "logprob": {"top_k": 2},
        "treg": {"better": "Be good."},
        "generative": {"template": "{{ response }}?", "system": "Judge.", "yes": ["Y"]},
        "process": {"layout": "skywork", "separator": "\n", "reduction": "mean"},
    }
    credit = {"name": "values", "kl": {"coef": 0.1}, "clip": [-1, 1], "scale": 2.0}
    names = [each["type"] for scorers in _SCORERS.values() for each in scorers]
    for name in names:
        body = {"scorer": name, "items": items, "options": options.get(name, {})}
        bodies.append(("/v1/rewards", body))
        bodies.append(("/v1/rewards", {**body, "credit": credit, "return_tokens": True}))
    for pair in (["endogenous", "x=logprob"], ["logprob", "reward_model"], ["treg", "constant"]):
        together = {"scorers": pair, "items": items, "combine": dict.fromkeys(pair, 0.5)}
        bodies.append(("/v1/rewards", {**together, "encoding_format": "base64"}))
        bodies.append(("/v1/rewards", {"scorers": pair, "items": items[:2], "min_version": 1}))
    return bodies
