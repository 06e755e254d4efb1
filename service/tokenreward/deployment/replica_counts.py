"""How many replicas each deployment is to have and has, as Ray's controller knows it.

It knows no scorers and decides nothing: the settings or `autoscaling.py` do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from tokenreward.deployment.ray_calls import on_thread
from tokenreward.metrics import REPLICA_COUNTS, Metrics, Snapshot

TIMEOUT_S = 5.0
_STARTING_OR_GONE = {"STARTING", "STOPPING", "STOPPED"}

logger = logging.getLogger("ray.serve")


def ray_controller() -> Any:
    """Ray Serve's controller. It blocks while the GCS is away."""
    return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)


async def replica_counts(
    controller_of: Any, applications: Mapping[str, tuple[str, str]]
) -> dict[tuple[str, str], Snapshot]:
    """The numbers of replicas as metrics.

    Args:
        controller_of: Gets Ray Serve's controller.
        applications: For each label of the metrics, the names of an application and of its
            deployment.

    Returns:
        By label, with no replica's name. Deployments that the controller does not tell, because it
        starts again or has none of that name, are left out.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            controller = await on_thread(controller_of)
    except (RayError, TimeoutError, ValueError) as error:  # ValueError: there is none
        logger.info("no numbers of replicas (%s)", type(error).__name__)
        return {}
    details_of = controller.get_deployment_details.remote
    answers = await asyncio.gather(
        *(asyncio.wait_for(details_of(*names), TIMEOUT_S) for names in applications.values()),
        return_exceptions=True,
    )
    counts = {}
    for label, details in zip(applications, answers, strict=True):
        if isinstance(details, (RayError, TimeoutError, KeyError, ValueError)):
            logger.info("%s: no number of replicas (%s)", label, type(details).__name__)
            continue
        if isinstance(details, BaseException):
            raise details
        metrics = Metrics(REPLICA_COUNTS)
        metrics.report("replicas_desired", details.target_num_replicas)
        num_running = sum(replica.state == "RUNNING" for replica in details.replicas)
        metrics.report("replicas_running", num_running)
        counts[label, ""] = metrics.snapshot()
    return counts


async def num_loaded(controller_of: Any, application: str, deployment: str) -> int | None:
    """How many replicas of a deployment have loaded, whether or not they answer now. None if the
    controller does not tell."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            controller = await on_thread(controller_of)
            details = await controller.get_deployment_details.remote(application, deployment)
    except (RayError, TimeoutError, KeyError, ValueError) as error:
        logger.info("%s: no number of replicas (%s)", application, type(error).__name__)
        return None
    return sum(replica.state not in _STARTING_OR_GONE for replica in details.replicas)
