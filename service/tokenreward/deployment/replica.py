"""One replica as Ray Serve runs it: an engine behind its HTTP application, loaded and reloaded by
`reconfigure`.

It knows no scorers and reads no requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from pydantic import ValidationError
from ray import serve

from tokenreward.deployment.follower import Follower
from tokenreward.deployment.gateway import call_replicas, ray_handle
from tokenreward.deployment.lending import Lender
from tokenreward.deployment.peers import RayPeers, answer_calls
from tokenreward.deployment.plan import REPLICA, limits_of, protocol_plans
from tokenreward.deployment.process import (
    freeze_loaded_objects,
    give_back_memory,
    limit_threads,
    log_with_ray,
    tune_interpreter,
)
from tokenreward.deployment.registry import RayKeyValues
from tokenreward.deployment.reloader import Reloader
from tokenreward.deployment.replica_counts import num_loaded, ray_controller
from tokenreward.engine.slot import Slot
from tokenreward.errors import frames
from tokenreward.http.app import build_app, refuse_websockets
from tokenreward.http.gateway.registry import Registry
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.scope import App
from tokenreward.metrics import Metrics, Snapshot
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.parsing import refusal
from tokenreward.wire.weights import Weights

if TYPE_CHECKING:
    from tokenreward.engine import Engine

LENDING_PAUSE_S = 5.0  # after a failure to begin
_STATUS_S = 5.0

logger = logging.getLogger("ray.serve")  # the logger that writes to the replica's own file


@serve.deployment
@serve.ingress()
class Replica:
    """One deployment's weights and their HTTP routes.

    Args:
        args: The application's `args` in the config that `plan.serve_config` made.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        tune_interpreter()
        give_back_memory()
        log_with_ray()
        refuse_websockets()
        self._settings = dict(args["deployment"])
        self._limits = limits_of(args)
        self._plans = protocol_plans(args)
        self._metrics = Metrics()
        self.slot = Slot()
        pushed = partial(Registry(RayKeyValues()).pushed, self._settings["name"])
        report = self._metrics.report
        reloader = Reloader(self.slot, load=self.load, put=self._put, report=report)
        self.follower = Follower(
            self.slot, pushed, reloader, report, other_versions=self._other_versions
        )
        self._lending: asyncio.Task[None] | None = None
        self._lender: Lender | None = None
        self._lending_failed = False

    def __serve_build_asgi_app__(self) -> App:
        backend = ReplicaBackend(
            self._settings["name"],
            self.slot,
            metrics=self._metrics,
            limits=self._limits,
            plans=self._plans,
        )
        return build_app(backend)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes other settings. The first ones are loaded before the replica is ready.

        Later ones are noted, and change the weights in the background: Ray sends no requests to a
        replica whose `reconfigure` runs. Nor does it raise then: Ray would replace the replica, and
        its successor would fail, too.

        Args:
            user_config: The settings that change in place: checkpoint and version. If weights with
                a greater version, or the same one, were pushed, those are served.

        Raises:
            Exception: The first weights cannot be loaded.
        """
        is_first = self.follower.version is None
        try:
            settings = DeploymentSettings.model_validate({**self._settings, **user_config})
        except ValidationError as error:
            if is_first:
                raise
            self.follower.note_failure(refusal(error))
            return
        if is_first:
            await self.follower.start(settings)
        else:
            self.follower.declare(settings)

    def load(self, settings: DeploymentSettings) -> Engine:
        """Loads an engine. It blocks, and others may serve meanwhile."""
        limit_threads(settings.num_cpus)
        # Torch comes with this import, after its threads are limited. Ray also imports this module
        # in a process that only builds the application, and that needs no torch.
        from tokenreward.engine import Engine

        return Engine.load(settings, report=self._metrics.report, say=logger.info)

    async def _put(self, engine: Engine) -> None:
        """Serves with an engine from now on. Returns once the one before is freed."""
        # The old weights are frozen, too. Unfrozen, they are found and freed once they are dropped.
        gc.unfreeze()
        await self.slot.put(engine)
        await self._stop_lending()  # it refers to the engine before
        await asyncio.to_thread(freeze_loaded_objects)
        self._lending = asyncio.create_task(self.lend_forever())

    async def lend_forever(self) -> None:
        """Lends waiting jobs to other replicas, and computes theirs. What fails at first is tried
        again, and logged once."""
        while self._lender is None:
            try:
                lender = Lender(self.slot, RayPeers(self._settings["name"]), self._metrics.report)
                answer_calls(
                    at_once={"status": lender.status},
                    later={"accept": lender.accept, "repay": lender.repay},
                )
                self._lender = lender
            except Exception as error:
                if not self._lending_failed:
                    logger.error("lending cannot begin, and is tried again: %s", frames(error))
                self._lending_failed = True
                await asyncio.sleep(LENDING_PAUSE_S)
        await self._lender.run_forever()

    async def _stop_lending(self) -> None:
        if self._lending is not None:
            self._lending.cancel()
            await asyncio.wait([self._lending])
            self._lending = None
        if self._lender is not None:
            self._lender.forget()

    async def _other_versions(self) -> list[int | None]:
        """The versions that the other replicas serve; None for one that does not answer, or that
        Ray hands no calls to although it has loaded, as after a restart of the controller."""
        name = self._settings["name"]
        answers = await call_replicas(ray_handle, name, "weights_status", (), _STATUS_S)
        versions = [each["version"] if isinstance(each, dict) else None for each in answers]
        num = await num_loaded(ray_controller, name, REPLICA)
        num_silent = 1 if num is None else max(0, num - len(versions))
        return [*versions, *[None] * num_silent]

    async def address(self) -> str:
        """Where other replicas reach this one (`RayPeers`)."""
        return str(ray.get_runtime_context().get_actor_name())

    async def check_health(self) -> None:
        """Raises what is wrong. Ray replaces a replica whose check keeps raising."""
        self.slot.engine.check_health()
        self.follower.check()

    async def prepare_weights(self, weights: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Reads weights and checks them, for a commit that comes soon."""
        return _signed(await self.follower.prepare(Weights(**weights), within_s=within_s))

    async def commit_weights(self, weights: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Serves weights that were prepared."""
        return _signed(await self.follower.commit(Weights(**weights), within_s=within_s))

    async def discard_weights(self, version: int) -> dict[str, Any]:
        """Drops what was prepared for a version."""
        return _signed(self.follower.discard(version))

    async def weights_status(self) -> dict[str, Any]:
        """The version that is served and the weights that are declared."""
        return _signed(self.follower.status())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What this replica has to do, for the policy in `autoscaling.py`; nothing while it loads.

        Ray asks for it by this name where the deployment has `autoscaling`.
        """
        return self.slot.load_figures()

    async def snapshot(self) -> tuple[str, Snapshot]:
        """This replica's id and its metrics."""
        return serve.get_replica_context().replica_tag, self._metrics.snapshot()


def _signed(report: dict[str, Any]) -> dict[str, Any]:
    """A report with the name of the replica that makes it."""
    return {"replica": serve.get_replica_context().replica_tag, **report}
