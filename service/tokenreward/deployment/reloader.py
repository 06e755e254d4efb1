"""Changes the weights of one replica while it serves: in place, or by a second engine.

    in place        new weights are prepared, then copied into the engine between two batches
    second engine   loaded while the first one serves, whose place it takes once it is loaded

The second engine may be anything that a start could load, and there must be memory for both. This
module knows no Ray, and not which weights are the newest.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tokenreward.engine.slot import Slot
from tokenreward.engine.usage import Report
from tokenreward.errors import InternalError, InvalidField, Updating
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.weights import Weights

if TYPE_CHECKING:  # torch comes with the engine, after its threads are limited
    from tokenreward.engine import Engine

logger = logging.getLogger("ray.serve")


class Reloader:
    """Changes the engine of a slot, or its weights.

    Args:
        slot: Holds the engine.
        load: Loads an engine; it blocks.
        put: Serves with an engine from now on. It returns once the one before is closed.
        report: Told the metric `model_version`.

    Attributes:
        busy: Held while weights are prepared or changed, and until an engine that was replaced has
            answered its last request. A second engine is loaded without it, so pushes go on.
            `start` and `change_engine` take it themselves.
        draining: The version of an engine that was replaced and still answers its last requests,
            until their deadlines at most. None if there is no such engine.
    """

    def __init__(
        self,
        slot: Slot,
        *,
        load: Callable[[DeploymentSettings], Engine],
        put: Callable[[Engine], Awaitable[None]],
        report: Report,
    ) -> None:
        self._slot = slot
        self._load = load
        self._put = put
        self._report = report
        self.busy = asyncio.Lock()
        self.draining: int | None = None
        self._candidate: Weights | None = None  # what is prepared
        self._in_preparation: Weights | None = None
        self._in_load: Weights | None = None
        self._discard_at = 0.0

    async def start(self, settings: DeploymentSettings, declared: DeploymentSettings) -> None:
        """Loads and serves the first engine. Raises what the load raises.

        Args:
            settings: What the engine is loaded by.
            declared: These settings, with the weights that the operator wrote.
        """
        async with self.busy:
            engine = await asyncio.to_thread(self._load, settings)
            engine.declared = declared
            await self._put(engine)

    async def prepare(self, weights: Weights, *, keep_s: float) -> None:
        """Reads and checks weights for a `commit` within `keep_s`. The caller holds `busy`.

        Raises:
            InvalidField: They cannot take the place of the served weights.
            Updating: They do not fit, but a second engine is being loaded, which they may fit. Or
                they were discarded meanwhile, or their files changed.
            InternalError: Their files could not be read again.
        """
        self.discard()
        self._in_preparation = weights
        try:
            await self._slot.engine.prepare(weights)
        except InvalidField as error:
            if self._in_load is None:
                raise
            raise Updating(
                f"version {self._in_load.version} is being loaded, and these weights do not fit "
                f"version {self._slot.engine.version}: {error.message}"
            ) from None
        finally:
            self._in_preparation = None
        self._candidate, self._discard_at = weights, time.monotonic() + keep_s

    async def commit(self, weights: Weights) -> bool:
        """Serves these weights if they are prepared. The caller holds `busy`.

        Returns:
            Whether they were prepared. Others may have been, under the same version.

        Raises:
            Updating: Their files changed meanwhile.
            InternalError: Their files could not be read, or the copy failed half way.
        """
        if self._candidate != weights:
            return False
        self._candidate = None
        await self._slot.engine.commit(weights.version)
        self._slot.announce()
        return True

    def discard(self, version: int | None = None) -> None:
        """Drops what is prepared, or is being prepared: of any version, or of this one."""
        candidates = [each for each in (self._candidate, self._in_preparation) if each is not None]
        if version is None or any(each.version == version for each in candidates):
            self._candidate = None
            self._slot.engine.discard()

    def discard_late(self) -> None:
        """Drops what was prepared if its commit has not come in time."""
        if self._candidate is not None and time.monotonic() > self._discard_at:
            self.discard()

    async def change_in_place(
        self, settings: DeploymentSettings, declared: DeploymentSettings
    ) -> bool:
        """Copies the weights of the settings into the engine that serves. The caller holds `busy`.

        Returns:
            Whether they serve now. If not, nothing has changed: they do not fit, or their version
            is not greater.

        Raises:
            Updating: Their files changed, or they were discarded meanwhile. Nothing has changed.
            InternalError: Their files could not be read, or the copy failed half way.
        """
        engine, weights = self._slot.engine, settings.weights
        if weights.version <= engine.version:  # an engine's own versions only grow
            return False
        before, engine.declared = engine.declared, declared
        is_changed = False
        try:
            if self._candidate != weights:
                await self.prepare(weights, keep_s=0.0)
            is_changed = await self.commit(weights)
        except (Updating, InternalError):
            raise
        except Exception as error:  # if they cannot be served at all, the load says why
            # As text: the traceback refers to the engine, and would keep it in a log's buffer.
            reason = str(error)
            logger.info("version %d is not copied in place: %s", weights.version, reason)
        finally:
            if not is_changed:
                engine.declared = before
        return is_changed

    async def change_engine(
        self,
        settings: DeploymentSettings,
        declared: DeploymentSettings,
        *,
        is_superseded: Callable[[], bool],
    ) -> bool:
        """Loads a second engine while the first one serves, then serves with it.

        Args:
            settings: What the engine is loaded by.
            declared: These settings, with the weights that the operator wrote.
            is_superseded: Asked after the load whether something else is to serve now.

        Returns:
            Whether the second engine serves. If not, it was superseded, and is dropped.

        Raises:
            Exception: It cannot be loaded.
        """
        old_version = self._slot.engine.version
        logger.info("version %d is loaded beside version %d", settings.version, old_version)
        self._in_load = settings.weights
        try:
            try:
                engine = await asyncio.to_thread(self._load, settings)
            finally:  # the load has reported its own version, but the old one serves
                self._report("model_version", self._slot.engine.version)
            async with self.busy:
                if not is_superseded():
                    engine.declared = declared
                    self.discard()  # it was prepared for the engine before
                    self._report("model_version", engine.version)
                    self.draining = self._slot.engine.version
                    try:
                        await self._put(engine)
                    finally:
                        self.draining = None
                    return True
        finally:
            self._in_load = None
        await engine.close()
        del engine
        gc.collect()  # engines are in reference cycles, which keep their weights alive
        return False
