"""The only room that knows Ray: applications made from settings, and the private Ray instance that
`serve` runs them on.

Ray imports the two functions here by name (`tokenreward.deployment:build_replica`). Importing this
package loads no Ray: Ray reads its environment when it is first imported, and `serve` sets it
before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def build_replica(args: dict[str, Any]) -> Application:
    """The application of one deployment; its checkpoint and version come with `user_config`."""
    from tokenreward.deployment.replica import Replica

    return Replica.bind(args)  # type: ignore[attr-defined]


def build_gateway(args: dict[str, Any]) -> Application:
    """The application at `/`."""
    from tokenreward.deployment.gateway import Gateway

    return Gateway.bind(args)  # type: ignore[attr-defined]
