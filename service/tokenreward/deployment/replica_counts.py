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

from tokenreward.metrics import REPLICA_COUNTS, Metrics, Snapshot

_TIMEOUT_S = 5.0

logger = logging.getLogger("ray.serve")


def ray_controller() -> Any:
    """Ray Serve's controller, which answers within milliseconds."""
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
    counts = {}
    for label, names in applications.items():
        try:
            details = await asyncio.wait_for(
                controller_of().get_deployment_details.remote(*names), _TIMEOUT_S
            )
        except (RayError, TimeoutError, KeyError, ValueError) as error:
            logger.info("%s: no number of replicas (%s)", label, type(error).__name__)
            continue
        metrics = Metrics(REPLICA_COUNTS)
        metrics.report("replicas_desired", details.target_num_replicas)
        num_running = sum(replica.state == "RUNNING" for replica in details.replicas)
        metrics.report("replicas_running", num_running)
        counts[label, ""] = metrics.snapshot()
    return counts
