"""Keeps the engine of one replica at the newest weights: those that were pushed, or those that the
settings declare, whichever has the greater version.

A push is prepared and committed in two calls. A replica that misses them catches up: when it
starts, and later with Ray's health checks. What fails is said and leaves the engine as it is. It
knows no Ray: the registry of pushes comes as a plain callable.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.engine.slot import Slot
from tokenreward.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidField,
    Loading,
    RequestError,
    VersionConflict,
    frames,
)
from tokenreward.settings import DeploymentSettings, SettingsError
from tokenreward.wire.weights import Weights

logger = logging.getLogger("ray.serve")

# After a failure to catch up. Each attempt may load a whole checkpoint.
_FIRST_PAUSE_S = 8.0
_MAX_PAUSE_S = 60.0

Report = dict[str, Any]  # the fields of a `ReplicaWeights` without the replica's name


class Follower:
    """Changes the weights of one replica.

    Args:
        slot: Holds its engine.
        pushed: Gets the newest weights that were pushed; it blocks.

    Attributes:
        declared: The weights of the settings.
        error: Why the last attempt to catch up failed.
        busy: Held by whoever changes the engine or its weights. An engine that is put in the slot
            has nothing prepared, so whoever puts it also calls `forget`.
    """

    def __init__(self, slot: Slot, pushed: Callable[[], Weights | None]) -> None:
        self._slot = slot
        self._pushed = pushed
        self.declared: Weights | None = None
        self.error: RequestError | None = None
        self._candidate: Weights | None = None
        self._in_preparation: Weights | None = None
        self._last_push: Weights | None = None
        self._discard_at = 0.0
        self.busy = asyncio.Lock()
        self._catching_up: asyncio.Task[None] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._next_attempt = 0.0  # by time.monotonic

    async def newest(self, declared: Weights) -> Weights:
        """The weights to serve, given what the settings declare now.

        Raises what the registry raises: without its answer a replica could go back to old weights.
        """
        self.declared, self._next_attempt = declared, 0.0
        pushed = await self._newest_push()
        if pushed is None or pushed.version < declared.version:
            return declared
        if pushed.version == declared.version and pushed.checkpoint != declared.checkpoint:
            logger.warning(
                "version %d was pushed with %s and declared with %s: the pushed one is served",
                pushed.version,
                pushed.checkpoint,
                declared.checkpoint,
            )
        return pushed

    async def prepare(self, weights: Weights, *, within_s: float) -> Report:
        """Checks and reads weights; what is served stays as it is. They are kept for a commit that
        comes within the same time again, and then dropped.

        Returns:
            A report, whose error says why they cannot be served.
        """
        work = asyncio.ensure_future(self._prepare(weights, keep_s=within_s))
        return await self._within(work, within_s)

    async def commit(self, weights: Weights, *, within_s: float) -> Report:
        """Serves these weights, if they are prepared. Otherwise the replica catches up."""
        work = asyncio.ensure_future(self._commit(weights))
        return await self._within(work, within_s)

    def discard(self, version: int) -> Report:
        """Drops what was prepared, or is being prepared, for this version."""
        candidates = self._candidate, self._in_preparation
        if any(each is not None and each.version == version for each in candidates):
            self._discard()
        return self.report()

    @property
    def version(self) -> int | None:
        """The version that is served; None before the first weights are loaded."""
        try:
            return self._slot.engine.version
        except Loading:
            return None

    def serves(self, weights: Weights) -> bool:
        """Whether these weights are those that are served: their version may have others."""
        return self.version is not None and weights == declared_weights(self._slot.engine.settings)

    def note_failure(self, error: Exception) -> None:
        """Notes why newer weights cannot be served, for the log and for `status`."""
        self.error = _as_request_error(error, "the newest weights cannot be served")
        logger.warning("version %s stays: %s", self.version, self.error)

    def forget(self) -> None:
        """The engine that had prepared something serves no more."""
        self._candidate = None

    def report(self, error: RequestError | None = None) -> Report:
        """What the replica serves, as plain objects."""
        return {
            "version": self._slot.engine.version,
            "error": None if error is None else error.detail(),
        }

    def status(self) -> Report:
        """The same, with what the settings declare and why the replica could not catch up."""
        declared = None if self.declared is None else asdict(self.declared)
        return {**self.report(self.error), "declared": declared}

    def check(self) -> None:
        """Catches up in the background if newer weights were pushed, and drops what was prepared
        and is not going to be committed. It returns at once; Ray calls it every few seconds."""
        if self._candidate is not None and time.monotonic() > self._discard_at:
            self._discard()
        if time.monotonic() < self._next_attempt:
            return
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.ensure_future(self.catch_up())

    async def catch_up(self) -> None:
        """Serves the newest weights: those pushed, or those declared which could not be loaded
        before. On failure `error` says why not."""
        try:
            newest = await self._newest_push()
            async with self.busy:
                if newest is None or newest.version < self._floor():
                    newest = self.declared
                if newest is not None and newest.version > self._slot.engine.version:
                    logger.info("catching up with version %d", newest.version)
                    if self._candidate != newest:
                        self._discard()
                        await self._slot.engine.prepare(newest)
                    self._candidate = None
                    await self._slot.engine.commit(newest.version)
                    self._slot.announce()
                if newest is None or newest.version == self._slot.engine.version:
                    self.error = None  # a redeploy of lower weights may have failed
            self._pause_s, self._next_attempt = _FIRST_PAUSE_S, 0.0
        except Exception as error:
            self._next_attempt = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
            self.note_failure(error)

    async def _prepare(self, weights: Weights, *, keep_s: float) -> None:
        ends_at = time.monotonic() + keep_s
        async with self.busy:
            if time.monotonic() >= ends_at:  # nobody waits for it any more
                raise DeadlineExceededError("other weights were being changed all the time")
            if weights.version <= self._floor():
                raise VersionConflict(
                    f"version {weights.version} is not greater than {self._floor()}",
                    param="version",
                )
            self._discard()
            self._in_preparation = weights
            try:
                await self._slot.engine.prepare(weights)
            finally:
                self._in_preparation = None
            self._candidate, self._discard_at = weights, time.monotonic() + keep_s

    async def _commit(self, weights: Weights) -> None:
        async with self.busy:
            if self._slot.engine.version == weights.version:
                return
            # Another gateway may have prepared others under the same version meanwhile.
            if self._candidate == weights:
                self._candidate = None
                await self._slot.engine.commit(weights.version)
                self._slot.announce()
                self.error = None
                return
        await self.catch_up()
        if self.error is not None:
            raise self.error

    async def _within(self, work: asyncio.Future[None], within_s: float) -> Report:
        """The report once `work` is done. It goes on if it takes longer, and if nobody waits."""
        # If nobody waits, asyncio need not log the error: it is in the next report.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with asyncio.timeout(within_s):
                await asyncio.shield(work)
        except TimeoutError:
            return self.report(DeadlineExceededError(f"not done within {within_s:.1f} s"))
        except Exception as error:
            return self.report(_as_request_error(error, "the weights cannot be served"))
        return self.report()

    async def _newest_push(self) -> Weights | None:
        """The newest weights that were pushed. If the registry lost them, those that it had."""
        pushed = await asyncio.to_thread(self._pushed)
        last = self._last_push
        if last is None or (pushed is not None and pushed.version > last.version):
            self._last_push = pushed
        return self._last_push

    def _floor(self) -> int:
        """The version that others must pass."""
        versions = [self._slot.engine.version]
        if self.declared is not None:
            versions.append(self.declared.version)
        return max(versions)

    def _discard(self) -> None:
        self._candidate = None
        self._slot.engine.discard()


def declared_weights(settings: DeploymentSettings) -> Weights:
    """The weights that a deployment's settings declare."""
    return Weights(
        checkpoint=settings.checkpoint,
        version=settings.version,
        adapter=settings.adapter,
        reference_checkpoint=settings.reference_checkpoint,
    )


def _as_request_error(error: Exception, sentence: str) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (CheckpointRefused, SettingsError)):  # sentences for the operator
        return InvalidField(str(error), param="checkpoint")
    logger.error("%s: %s", sentence, frames(error))
    return InternalError(f"{sentence}: {type(error).__name__}, see the replica's log")
