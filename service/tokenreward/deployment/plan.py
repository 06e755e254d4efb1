"""Ray Serve's declarative config from settings: what `serve` submits and what `schema --serve`
prints.

It knows the shape of that config and imports no Ray. Ray restarts the replicas of an application
whose `args` change. So the settings that change in place (number of replicas, weights, version)
stand outside `args`.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

from tokenreward.config import read_api_keys
from tokenreward.http.held_requests import MAX_HELD
from tokenreward.http.plans import check_plans
from tokenreward.http.request_limits import Limits
from tokenreward.settings import DeploymentSettings, ProtocolSettings, Settings
from tokenreward.wire.paths import deployment_prefix

GATEWAY_APP = "Gateway"  # names of deployments are lower case, so that none can be this one
REPLICA = "Replica"
GATEWAY = "Gateway"

_WEIGHTS = {"checkpoint", "version", "adapter", "reference_checkpoint"}
_OUTSIDE_ARGS = {
    "num_replicas",
    "autoscaling",
    "max_concurrent_requests",
    "max_replicas_per_node",
    *_WEIGHTS,
}
_POLICY = "tokenreward.deployment.autoscaling:TokenPolicy"
# Ray's controller learns from the next check of a replica that its node has died. By default there
# is a check every 10 s, and only then is another replica started.
_HEALTH_CHECK_PERIOD_S = 1.0


def serve_config(settings: Settings, *, is_cluster: bool = True) -> dict[str, Any]:
    """The full config as plain objects, valid against Ray's ServeDeploySchema.

    Args:
        settings: What to serve.
        is_cluster: Whether it is for a cluster. There several replicas of the gateway are on as
            many nodes, so that no node takes all of them along when it dies. If there are fewer
            nodes, the others wait for one, and those that run serve meanwhile. The same holds for
            a deployment with `max_replicas_per_node`.

    Raises:
        SettingsError: A protocol is set up in a way that no request could be answered with.
    """
    check_plans(settings)
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": settings.host,
            "port": settings.port,
            "request_timeout_s": settings.request_timeout_s,
        },
        "logging_config": {"encoding": settings.log_format.upper()},
        "applications": [
            _gateway(settings, is_cluster=is_cluster),
            *(_deployment(each, settings, is_cluster=is_cluster) for each in settings.deployments),
        ],
    }


def needed_cpus(settings: Settings) -> int:
    """CPUs that all replicas reserve together, those of the gateway included."""
    num_cpus = sum(d.max_replicas * d.num_cpus for d in settings.deployments)
    return math.ceil(settings.gateway_num_replicas * settings.gateway_num_cpus + num_cpus)


def internal_url(settings: Settings) -> str:
    """The address at which the service reaches itself: each node of the gateway has a proxy."""
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
    host = loopback.get(settings.host, settings.host)
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{settings.port}"


def limits_of(args: dict[str, Any]) -> Limits:
    """The limits of requests that an application's `args` hold, with the API keys.

    Raises:
        SettingsError: The key file cannot be used on this node.
    """
    # Behind Ray's proxy, which adds X-Request-ID to replies, we do not.
    return Limits(
        **args["limits"],
        api_keys=read_api_keys(args["api_keys_file"]),
        admin_keys=read_api_keys(args.get("admin_keys_file"), "admin_keys_file"),
        echo_request_id=False,
    )


def _gateway(settings: Settings, *, is_cluster: bool) -> dict[str, Any]:
    routes = {}
    for deployment in settings.deployments:
        for scorer in deployment.scorers:
            route = {
                "deployment": deployment.name,
                "type": scorer.type,
            }  # the fields of `ScorerRoute`
            if scorer.score_from is not None:
                route["score_from"] = scorer.score_from
            routes[scorer.served_name] = route
    options: dict[str, Any] = {
        "name": GATEWAY,
        "num_replicas": settings.gateway_num_replicas,
        # Each one may carry all requests, as the others may be gone, and those that it holds.
        "max_ongoing_requests": sum(
            d.max_concurrent_requests * d.max_replicas + MAX_HELD for d in settings.deployments
        ),
        "graceful_shutdown_timeout_s": settings.max_timeout_s,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "ray_actor_options": {"num_cpus": settings.gateway_num_cpus},
    }
    admin: dict[str, Any] = {}  # only the gateway has routes for admin keys
    if settings.admin_keys_file is not None:
        admin["admin_keys_file"] = str(settings.admin_keys_file)
    if is_cluster and settings.gateway_num_replicas > 1:
        options["max_replicas_per_node"] = 1
    return {
        "name": GATEWAY_APP,
        "route_prefix": "/",
        "import_path": "tokenreward.deployment:build_gateway",
        "args": {
            **_http(settings),
            **_protocols(settings, routes),
            **admin,
            "routes": routes,
            "url": internal_url(settings),
        },
        "deployments": [options],
    }


def _deployment(
    deployment: DeploymentSettings, settings: Settings, *, is_cluster: bool
) -> dict[str, Any]:
    fixed = deployment.model_dump(mode="json", exclude=_OUTSIDE_ARGS, exclude_defaults=True)
    names = {scorer.served_name for scorer in deployment.scorers}
    weights = deployment.model_dump(mode="json", include=_WEIGHTS, exclude_none=True)
    options: dict[str, Any] = {
        "name": REPLICA,
        **_num_replicas(deployment),
        "max_ongoing_requests": deployment.max_concurrent_requests,
        # A replica that is to stop answers first what it holds. It stops as soon as it has.
        "graceful_shutdown_timeout_s": settings.max_timeout_s,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "user_config": weights,
        "ray_actor_options": {"num_cpus": deployment.num_cpus, "num_gpus": deployment.num_gpus},
        # A caller of a full replica asks again after these pauses. By default they grow to half a
        # second, and a caller waits that long after the replica has room again.
        "request_router_config": {"initial_backoff_s": 0.005, "max_backoff_s": 0.02},
    }
    if is_cluster and deployment.max_replicas_per_node is not None:
        options["max_replicas_per_node"] = deployment.max_replicas_per_node
    return {
        "name": deployment.name,
        "route_prefix": deployment_prefix(deployment.name),
        "import_path": "tokenreward.deployment:build_replica",
        "args": {**_http(settings), **_protocols(settings, names), "deployment": fixed},
        "deployments": [options],
    }


def _num_replicas(deployment: DeploymentSettings) -> dict[str, Any]:
    """The number of replicas in Ray's words: one number, or how it follows the load.

    With these times a decision comes 2 to 4 s after a burst began, by Ray's defaults after 30 s.
    The replicas' figures of the last 2 s count by their largest: their mean would halve the first
    reading of a burst.
    """
    autoscaling = deployment.autoscaling
    if autoscaling is None:
        return {"num_replicas": deployment.num_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": autoscaling.min_replicas,
            "max_replicas": autoscaling.max_replicas,
            "upscale_delay_s": autoscaling.upscale_delay_s,
            "downscale_delay_s": autoscaling.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 2.0,
            "aggregation_function": "max",
            "policy": {
                "policy_function": _POLICY,
                "policy_kwargs": {
                    "target_queue_s": autoscaling.target_queue_s,
                    "tokens_per_second": autoscaling.tokens_per_second,
                    "max_queued_tokens": deployment.max_queued_tokens,
                },
            },
        }
    }


def _protocols(settings: Settings, names: Container[str]) -> dict[str, Any]:
    """The settings of protocols that concern an application which serves the scorers `names`.

    Others are left out, so that a change of theirs restarts no replica. Without any there is no
    entry, either.
    """
    protocols = {
        name: plan.model_dump(mode="json", exclude_defaults=True)
        for name, plan in settings.protocols.items()
        if plan.scorer is None or plan.scorer in names
    }
    return {"protocols": protocols} if protocols else {}


def protocol_plans(args: dict[str, Any]) -> dict[str, ProtocolSettings]:
    """The settings of protocols that an application's `args` hold."""
    protocols = args.get("protocols", {})
    return {name: ProtocolSettings(**plan) for name, plan in protocols.items()}


def _http(settings: Settings) -> dict[str, Any]:
    """The part of `args` that the gateway and every replica have: limits of requests, and the
    name of the key file, which each node reads for itself so that no key stands in a config."""
    keys_file = settings.api_keys_file
    return {
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_body_memory_bytes": settings.max_body_memory_bytes,
            "max_request_items": settings.max_request_items,
            "request_timeout_s": settings.request_timeout_s,
            "max_timeout_s": settings.max_timeout_s,
        },
        "api_keys_file": None if keys_file is None else str(keys_file),
    }
