"""One replica as Ray Serve runs it: an engine behind the ingress, loaded and reloaded by
`reconfigure`."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING, Any

from ray import serve

from tokenreward.deployment.plan import limits_of
from tokenreward.deployment.process import be_responsive, compute_on, keep_what_is_loaded
from tokenreward.engine.slot import Slot
from tokenreward.http.guard import App
from tokenreward.http.replica import build_app
from tokenreward.metrics import Metrics, Snapshot
from tokenreward.settings import DeploymentSettings

if TYPE_CHECKING:
    from tokenreward.engine import Engine

logger = logging.getLogger("ray.serve")  # the logger that writes to the replica's own file


@serve.deployment
@serve.ingress()
class Replica:
    """One deployment's weights and their HTTP routes."""

    def __init__(self, args: dict[str, Any]) -> None:
        be_responsive()
        self._settings = dict(args["deployment"])
        self._limits = limits_of(args)
        self._metrics = Metrics()
        self._slot = Slot()

    def __serve_build_asgi_app__(self) -> App:
        return build_app(
            self._settings["name"], self._slot, metrics=self._metrics, limits=self._limits
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load other weights while the old ones serve, then swap."""
        settings = DeploymentSettings.model_validate({**self._settings, **user_config})
        engine = await asyncio.to_thread(self._load, settings)
        gc.unfreeze()  # the old weights are in it, and must be found
        await self._slot.put(engine)
        await asyncio.to_thread(keep_what_is_loaded)

    def _load(self, settings: DeploymentSettings) -> Engine:
        compute_on(settings.num_cpus)
        # Imported here, also because Ray imports this module in a process that only builds the
        # application.
        from tokenreward.engine import Engine

        return Engine.load(settings, report=self._metrics.report, say=logger.info)

    def check_health(self) -> None:
        """Ray replaces a replica whose check keeps raising."""
        self._slot.engine.check_health()

    async def snapshot(self) -> tuple[str, Snapshot]:
        """This replica's id and its metrics."""
        return serve.get_replica_context().replica_tag, self._metrics.snapshot()
