"""Keeps one replica at the newest weights: the pushed ones or the declared ones, whichever have the
greater version.

    push       prepared and committed in two calls
    redeploy   declared in one call, which returns at once; the change happens in the background

A replica that misses a push catches up: when it starts, and later with Ray's health checks. What
fails is said and leaves the engine as it is. This module knows no Ray: the registry of pushes comes
as a plain callable. How weights are changed is in `reloader`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from tokenreward.checkpoints.refusal import CheckpointRefused
from tokenreward.deployment.newest import OtherVersions, load_first, newest_first
from tokenreward.deployment.reloader import Reloader
from tokenreward.engine.slot import Slot
from tokenreward.engine.usage import Report as ReportMetric
from tokenreward.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidField,
    Loading,
    RequestError,
    Updating,
    VersionConflict,
    drop_frames,
    frames,
)
from tokenreward.http.gateway.push_turn import registered
from tokenreward.settings import DeploymentSettings, SettingsError
from tokenreward.wire.weights import Weights

logger = logging.getLogger("ray.serve")

REGISTRY_S = 10.0  # the registry answers within milliseconds, or its store is away
# After a failure to catch up.
_FIRST_PAUSE_S = 8.0
_MAX_PAUSE_S = 60.0
# An attempt may load a whole checkpoint, which takes CPUs and memory from what serves. So attempts
# that fail have a tenth of the time at most.
_PAUSE_PER_ATTEMPT = 9.0

Report = dict[str, Any]  # the fields of a `ReplicaWeights` without the replica's name


class Follower:
    """Decides what one replica serves.

    Args:
        slot: Holds its engine.
        pushed: Gets the newest weights that were pushed; it blocks.
        reloader: Changes the engine of the slot.
        report: Told the metric `newest_version`.
        other_versions: Asks which versions the other replicas serve.

    Attributes:
        declared: The settings as they were declared last.
        error: Why the last attempt to serve the newest weights failed.
    """

    def __init__(
        self,
        slot: Slot,
        pushed: Callable[[], Weights | None],
        reloader: Reloader,
        report: ReportMetric,
        *,
        other_versions: OtherVersions,
    ) -> None:
        self._slot = slot
        self._pushed = pushed
        self._reloader = reloader
        self._report = report
        self._other_versions = other_versions
        self.declared: DeploymentSettings | None = None
        self.error: RequestError | None = None
        self._last_push: Weights | None = None
        self._last_conflict: Weights | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._next_attempt = 0.0  # by time.monotonic

    async def start(self, settings: DeploymentSettings) -> None:
        """Loads and serves the first weights: the newest, or those before them (see `load_first`).

        Raises:
            Exception: They cannot be loaded, or the registry does not answer. Without its answer a
                replica could go back to old weights.
        """
        self.declared, began = settings, time.monotonic()
        candidates = await self._candidates(settings)
        self._report("newest_version", candidates[0].version)
        failure = await load_first(self._reloader, candidates, settings, self._other_versions)
        if failure is None:
            await self.catch_up()  # with what was pushed meanwhile
        else:
            self._postpone(failure, began)

    def declare(self, settings: DeploymentSettings) -> None:
        """Begins to serve what the settings declare from now on, if it is the newest, and returns
        at once. What serves now serves until then. A load of what was declared before goes on to
        its end, as a thread cannot be stopped, and is dropped."""
        self.declared, self._next_attempt, self._pause_s = settings, 0.0, _FIRST_PAUSE_S
        self.check()

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
        self._reloader.discard(version)
        return self.report()

    @property
    def version(self) -> int | None:
        """The version that is served; None before the first weights are loaded."""
        try:
            return self._slot.engine.version
        except Loading:
            return None

    def note_failure(self, error: Exception) -> None:
        """Notes why newer weights cannot be served, for the log and for `status`."""
        last = self.error
        self.error = _as_request_error(error, "the newest weights cannot be served")
        drop_frames(self.error)
        if last is None or last.message != self.error.message:  # it is tried again and again
            logger.warning("version %s stays: %s", self.version, self.error)

    def report(self, error: RequestError | None = None) -> Report:
        """What the replica serves, as plain objects."""
        return {
            "version": self._slot.engine.version,
            "error": None if error is None else error.detail(),
        }

    def status(self) -> Report:
        """The same, with what the settings declare and why the replica could not catch up."""
        declared = None if self.declared is None else asdict(self.declared.weights)
        return {**self.report(self.error), "declared": declared}

    def check(self) -> None:
        """Catches up in the background with what was pushed or declared, and drops what was
        prepared and is not going to be committed. It returns at once; Ray calls it once a
        second."""
        self._reloader.discard_late()
        if time.monotonic() >= self._next_attempt:
            self._begin_to_catch_up()

    async def catch_up(self) -> None:
        """Serves the newest weights. On failure `error` says why not."""
        if self._catching_up is not None:  # it may have read the registry before the last push
            await asyncio.wait([self._catching_up])
        await asyncio.wait([self._begin_to_catch_up()])

    def _begin_to_catch_up(self) -> asyncio.Task[None]:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._catch_up())
        return self._catching_up

    async def _catch_up(self) -> None:
        began = time.monotonic()
        try:
            while not await self._follow():
                began = time.monotonic()
            self.error, self._pause_s, self._next_attempt = None, _FIRST_PAUSE_S, 0.0
        except Exception as error:
            self._postpone(error, began)

    def _postpone(self, error: Exception, began: float) -> None:
        """Notes why an attempt failed that began then, and when the next one is due."""
        now, pause_s = time.monotonic(), self._pause_s
        if not isinstance(error, Loading):  # waiting for the registry takes nothing from others
            pause_s = max(pause_s, _PAUSE_PER_ATTEMPT * (now - began))
        self._next_attempt = now + pause_s
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)
        self.note_failure(error)

    async def _follow(self) -> bool:
        """Changes to what is the newest now, in place or by a second engine.

        Returns:
            Whether it serves. If not, something else was declared or pushed meanwhile.

        Raises:
            Exception: It cannot be served, or the registry is silent.
        """
        declared, version = self.declared, self._slot.engine.version
        if declared is None:
            return True

        def is_superseded() -> bool:
            return self.declared is not declared or self._slot.engine.version != version

        try:
            newest, *_ = await self._candidates(declared)
            self._report("newest_version", newest.version)
            async with self._reloader.busy:
                is_there = newest.weights == self._slot.engine.settings.weights
                if not is_there:
                    is_there = await self._reloader.change_in_place(newest, declared)
            if is_there:
                return self.declared is declared
            return await self._reloader.change_engine(newest, declared, is_superseded=is_superseded)
        except Exception:
            if is_superseded():
                return False
            raise

    async def _prepare(self, weights: Weights, *, keep_s: float) -> None:
        ends_at = time.monotonic() + keep_s
        async with self._reloader.busy:
            if time.monotonic() >= ends_at:  # nobody waits for it any more
                raise DeadlineExceededError("other weights were being changed all the time")
            versions = [self._slot.engine.version]
            if self.declared is not None:
                versions.append(self.declared.version)
            if weights.version <= max(versions):
                raise VersionConflict(
                    f"version {weights.version} is not greater than {max(versions)}",
                    param="version",
                )
            await self._reloader.prepare(weights, keep_s=keep_s)

    async def _commit(self, weights: Weights) -> None:
        async with self._reloader.busy:
            if self._slot.engine.settings.weights == weights:  # a version may be declared anew
                return
            if await self._reloader.commit(weights):
                self._report("newest_version", weights.version)
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
            if self._reloader.draining is None:
                return self.report(DeadlineExceededError(f"not done within {within_s:.1f} s"))
            return self.report(
                Updating(
                    f"version {self.version} serves, and version {self._reloader.draining} still "
                    "answers its last requests: weights change once it has"
                )
            )
        except Exception as error:
            return self.report(_as_request_error(error, "the weights cannot be served"))
        return self.report()

    async def _candidates(self, declared: DeploymentSettings) -> list[DeploymentSettings]:
        """The settings with the weights that may serve (see `newest_first`). Raises Loading if the
        registry does not answer."""
        pushed = await registered(self._pushed, within_s=REGISTRY_S)
        last = self._last_push
        if last is not None and (pushed is None or pushed.version < last.version):
            pushed = last  # the registry has lost it
        self._last_push = pushed
        if pushed is None or pushed.version != declared.version:
            return newest_first(declared, pushed)
        if declared.weights not in (pushed, self._last_conflict):
            self._last_conflict = declared.weights
            facts = pushed.version, pushed.checkpoint, declared.checkpoint
            logger.warning("version %d is pushed: %s, and not as declared: %s", *facts)
        return newest_first(declared, pushed)


def _as_request_error(error: Exception, sentence: str) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (CheckpointRefused, SettingsError)):  # sentences for the operator
        return InvalidField(str(error), param="checkpoint")
    logger.error("%s: %s", sentence, frames(error))
    return InternalError(f"{sentence}: {type(error).__name__}, see the replica's log")
