"""A replica whose first weights load at once, and other ones in seconds, as those of a large model
do: `LOAD_S` of the environment more."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from ray import serve

from tokenreward.deployment.replica import Replica

if TYPE_CHECKING:
    from tokenreward.engine import Engine
    from tokenreward.settings import DeploymentSettings


class SlowlyLoadedReplica(Replica.func_or_class):  # type: ignore[name-defined, misc]
    """The product's replica, whose second load takes longer."""

    def load(self, settings: DeploymentSettings) -> Engine:
        if settings.version > 1:
            time.sleep(float(os.environ["LOAD_S"]))
        return super().load(settings)  # type: ignore[no-any-return]


def build_replica(args: dict[str, Any]) -> Any:
    """The application of one deployment, as `tokenreward.deployment.build_replica` is."""
    return serve.deployment(name="Replica")(SlowlyLoadedReplica).bind(args)  # type: ignore[attr-defined]
