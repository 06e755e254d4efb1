"""Ray Serve's declarative config from settings: what `serve` submits and what `schema --serve`
prints.

It knows the shape of that config and imports no Ray. What changes in place when the config is
submitted again (number of replicas, checkpoint, version) stands outside `args`, because changed
`args` restart replicas.
"""

from __future__ import annotations

import math
from typing import Any

from tokenreward.config import read_api_keys
from tokenreward.http.guard import Limits
from tokenreward.settings import DeploymentSettings, ScorerSettings, Settings

GATEWAY_APP = "Gateway"  # no deployment can have this name: theirs are lower case
REPLICA = "Replica"
GATEWAY = "Gateway"

_IN_PLACE = {"num_replicas", "checkpoint", "version", "max_concurrent_requests"}


def serve_config(settings: Settings) -> dict[str, Any]:
    """The full config, valid against Ray's ServeDeploySchema; plain objects."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.request_timeout_s,
        },
        "applications": [
            _gateway(settings),
            *(_deployment(deployment, settings) for deployment in settings.deployments),
        ],
    }


def needed_cpus(settings: Settings) -> int:
    """CPUs that all replicas reserve together."""
    return math.ceil(
        settings.gateway_num_cpus + sum(d.num_replicas * d.num_cpus for d in settings.deployments)
    )


def internal_url(settings: Settings) -> str:
    """Where the service reaches itself: every node that runs the gateway has a proxy."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def _gateway(settings: Settings) -> dict[str, Any]:
    routes = {
        scorer.served_name: _route(scorer, d.name)
        for d in settings.deployments
        for scorer in d.scorers
    }
    return {
        "name": GATEWAY_APP,
        "route_prefix": "/",
        "import_path": "tokenreward.deployment:build_gateway",
        "args": {**_http(settings), "routes": routes, "url": internal_url(settings)},
        "deployments": [
            {
                "name": GATEWAY,
                "max_ongoing_requests": sum(
                    d.max_concurrent_requests * d.num_replicas for d in settings.deployments
                ),
                "ray_actor_options": {"num_cpus": settings.gateway_num_cpus},
            }
        ],
    }


def _route(scorer: ScorerSettings, deployment: str) -> dict[str, Any]:
    """What the gateway knows of a scorer: the fields of its `Route`."""
    route = {"deployment": deployment, "type": scorer.type}
    return route if scorer.score_from is None else {**route, "score_from": scorer.score_from}


def _deployment(deployment: DeploymentSettings, settings: Settings) -> dict[str, Any]:
    return {
        "name": deployment.name,
        "route_prefix": f"/d/{deployment.name}",
        "import_path": "tokenreward.deployment:build_replica",
        "args": {
            **_http(settings),
            "deployment": deployment.model_dump(
                mode="json", exclude=_IN_PLACE, exclude_defaults=True
            ),
        },
        "deployments": [
            {
                "name": REPLICA,
                "num_replicas": deployment.num_replicas,
                "max_ongoing_requests": deployment.max_concurrent_requests,
                "user_config": {"checkpoint": deployment.checkpoint, "version": deployment.version},
                "ray_actor_options": {
                    "num_cpus": deployment.num_cpus,
                    "num_gpus": deployment.num_gpus,
                },
                # By default a caller of a full replica waits up to half a second after it has room
                # again.
                "request_router_config": {"initial_backoff_s": 0.005, "max_backoff_s": 0.02},
            }
        ],
    }


def limits_of(args: dict[str, Any]) -> Limits:
    """What `args` say of requests, read back in a replica. Raises SettingsError."""
    return Limits(
        **args["limits"], api_keys=read_api_keys(args["api_keys_file"]), echo_request_id=False
    )


def _http(settings: Settings) -> dict[str, Any]:
    return {
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_body_memory_bytes": settings.max_body_memory_bytes,
            "max_request_items": settings.max_request_items,
            "request_timeout_s": settings.request_timeout_s,
            "max_timeout_s": settings.max_timeout_s,
        },
        "api_keys_file": None if settings.api_keys_file is None else str(settings.api_keys_file),
    }
