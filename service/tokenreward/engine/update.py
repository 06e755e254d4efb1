"""Other weights for an engine that serves: prepared beside it, and copied in between two batches.

    prepare   a thread beside the device's loads and checks the new weights; nothing changes
    commit    the device's thread copies them into the model when no batch is in flight
    probe     the device's thread measures the layout with them, a part of it between two batches

A job says which version computed it. Where the items of a request were computed by two versions,
the older ones are computed again, so that a reply has one. It knows no HTTP, and not who pushes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.checkpoints.default_dtype import computing
from tokenreward.checkpoints.reference import reference_settings
from tokenreward.checkpoints.refusal import CheckpointRefused, one_line
from tokenreward.checkpoints.update import Update, prepare_update
from tokenreward.engine.job import Job
from tokenreward.engine.runner import Runner
from tokenreward.engine.usage import Report
from tokenreward.engine.worker import Worker
from tokenreward.errors import InternalError, InvalidField, Updating
from tokenreward.forward.layout import Gap
from tokenreward.settings import DeploymentSettings
from tokenreward.wire.weights import Weights

logger = logging.getLogger(__name__)

_MOST_VERSIONS = 100  # whose models' names are remembered, for replies that are still being written


class UpdatableEngine:
    """What an engine does to change its weights.

    Attributes:
        settings: The deployment's settings, with the weights that serve.
        declared: The settings as the operator wrote them. Revisions belong to the repositories that
            stand there.
        checkpoint: The model.
        runner: Runs the batches.
        worker: Takes the batches, and marks them with their version.
        probe_note: Why the layout's gap is not known, or that it is more than rounding explains;
            None if all is well.
    """

    settings: DeploymentSettings
    declared: DeploymentSettings
    checkpoint: Checkpoint
    runner: Runner
    worker: Worker
    probe_note: str | None = None
    _report: Report
    _next: tuple[DeploymentSettings, list[Update]] | None = None
    _num_preparations = 0
    _probing: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """The version of the weights that serve."""
        return self.worker.version

    def note_version(self) -> None:
        """Notes that the weights of `settings` serve from now on."""
        self.worker.version, self.declared = self.settings.version, self.settings
        self._names = {self.settings.version: self.settings.model}
        self._report("model_version", self.version)

    def served_by(self, jobs: Sequence[Job]) -> tuple[str, int]:
        """The model's name and version that a reply on some jobs states: those that computed them,
        or those that serve now if the model was not needed."""
        versions = [job.version for job in jobs if job.version is not None]
        version = max(versions, default=self.version)
        return self._names.get(version, self.settings.model), version

    async def prepare(self, weights: Weights) -> None:
        """Loads and checks weights for a later `commit`. What serves is not changed, whatever
        happens. What was prepared before is dropped.

        Raises:
            InvalidField: The weights cannot take the place of those that serve. The message names
                the file and the tensor, with both shapes.
            Updating: Files changed while they were read.
            InternalError: They could not be read again.
        """
        self.discard()
        number = self._num_preparations
        if (weights.version, weights.checkpoint) == (self.version, self.settings.checkpoint):
            return
        self._refuse_unfit(weights)
        settings = self.declared.with_weights(weights)
        updates = await asyncio.to_thread(self._load_updates, settings)
        if number != self._num_preparations:
            _close(updates)
            raise Updating("another preparation of weights, or a discard, came in between")
        self._next = settings, updates

    async def commit(self, version: int) -> None:
        """Serves what was prepared for this version. The engine serves on, but for a pause between
        two batches. Then the layout is probed again, in the background.

        Raises:
            Updating: Nothing is prepared for this version, or its files have been overwritten.
                Nothing has changed.
            InternalError: They could not be read, and nothing has changed. Or a copy failed half
                way: the engine computes nothing any more, and its health check fails.
        """
        if version == self.version:
            return
        ready, self._next = self._next, None
        if ready is None or ready[0].version != version:
            raise Updating(f"no weights are prepared for version {version}")
        loop = asyncio.get_running_loop()

        def start_probe() -> None:
            self._report("model_version", self.version)
            self.stop_probe()
            self._probing = asyncio.create_task(self._probe(self.version))

        def copy() -> None:
            self._copy(*ready)
            loop.call_soon_threadsafe(start_probe)  # also if nobody waits for the commit

        await self.worker.between_batches(copy)

    def discard(self) -> None:
        """Drops what was prepared, or is being prepared."""
        self._num_preparations += 1
        ready, self._next = self._next, None
        if ready is not None:
            _close(ready[1])

    def _refuse_unfit(self, weights: Weights) -> None:
        """Refuses weights by what a push names, before any file is read."""
        if weights.version <= self.version:
            raise InvalidField(
                f"version {weights.version} is not above {self.version}, which serves",
                param="version",
            )
        for name in ("adapter", "reference_checkpoint"):
            served, pushed = getattr(self.settings, name), getattr(weights, name)
            if served is None and pushed is not None:
                raise InvalidField(f"the deployment was started without `{name}`", param=name)
            if served is not None and pushed is None:
                raise InvalidField(
                    f"the deployment serves `{name}` `{served}`: name the one that is to serve, or "
                    "this one again",
                    param=name,
                )

    def _load_updates(self, settings: DeploymentSettings) -> list[Update]:
        """The updates of the policy and of a reference with weights of its own. It blocks."""
        began, updates = time.monotonic(), list[Update]()
        models = {"checkpoint": (self.checkpoint, settings)}
        reference = self.checkpoint.reference
        if reference is not None and reference.model is not self.checkpoint.model:
            models["reference_checkpoint"] = reference, reference_settings(settings)
        for param, model in models.items():
            try:
                updates.append(prepare_update(*model))
            except CheckpointRefused as error:
                _close(updates)
                raise InvalidField(str(error), param=param) from None
            except OSError as error:
                _close(updates)
                raise _unreadable(error) from None
        seconds = time.monotonic() - began
        logger.info("version %d is prepared in %.2f s", settings.version, seconds)
        return updates

    def _copy(self, settings: DeploymentSettings, updates: list[Update]) -> None:
        """Copies weights into the model. On the device's thread, with no batch in flight."""
        if self.runner.lost is not None:
            raise self.runner.lost
        began = time.monotonic()
        try:
            for update in updates:
                update.refuse_changed()
        except OSError as error:
            _close(updates)
            raise _unreadable(error) from None
        try:
            for update in updates:
                update.copy()
        except BaseException as error:
            # No batch may be computed by half of each version.
            self.runner.lost = InternalError(f"the weights are of two versions: {error}")
            raise self.runner.lost from error
        finally:
            _close(updates)
        self.runner.layout.gap = None  # it was measured with the weights before
        self.probe_note = f"version {settings.version} has not been probed yet"
        names = [*self._names.items(), (settings.version, settings.model)]
        self.settings, self._names = settings, dict(names[-_MOST_VERSIONS:])
        self.worker.version = settings.version
        num_bytes = sum(update.num_bytes for update in updates)
        logger.info(
            "version %d serves: %.0f MB copied in %.3f s",
            settings.version,
            num_bytes / 1e6,
            time.monotonic() - began,
        )

    def stop_probe(self) -> None:
        """Drops a measurement of the layout that has not ended."""
        if self._probing is not None:
            self._probing.cancel()

    async def _probe(self, version: int) -> None:
        """Measures how far the layout is from the model's own forward, with these weights.

        Each part of the work takes the device between two batches, and batches run between the
        parts. Weights that come meanwhile end it: what was measured until then is dropped.
        """
        measure = self.runner.layout.measure
        try:
            if measure is None:
                raise RuntimeError("the model could not be copied when it was loaded")
            parts, began = measure(), time.monotonic()
            while version == self.version and self.runner.layout.gap is None:
                part = partial(self._probe_part, parts, version)
                await self.worker.between_batches(part, is_part=True)
        except Exception as error:  # the model's own code raises errors of all kinds
            if version == self.version:
                self.probe_note = f"version {version} could not be probed: {one_line(error)}"
                logger.error("%s", self.probe_note)
            return
        gap = self.runner.layout.gap
        if version != self.version or gap is None:
            return
        logger.log(
            logging.INFO if gap.is_within else logging.ERROR,
            "version %d is probed in %.1f s: the %s layout differs from its own forward in %s%s",
            version,
            time.monotonic() - began,
            self.runner.layout.name,
            gap,
            "" if gap.is_within else ": more than rounding explains",
        )

    def _probe_part(self, parts: Iterator[Gap | None], version: int) -> None:
        """Does a part of a measurement, unless other weights serve by now. On the device's thread,
        with no batch in flight."""
        if version != self.version:
            return
        if self.runner.lost is not None:
            raise self.runner.lost
        with computing():
            gap = next(parts)
        if gap is None:
            return
        self.runner.layout.gap, self.probe_note = gap, None
        if not gap.is_within:
            self.probe_note = f"more than rounding explains: {gap}"


async def compute_by_one_version(jobs: Sequence[Job], queue: Callable[..., None]) -> None:
    """Queues jobs and waits until all of them are computed, by one version of the weights.

    Jobs that were computed before the weights changed are computed again. They have been admitted,
    so they are not refused then.

    Args:
        jobs: The jobs of a request, which wait.
        queue: Queues jobs, all or none. With `is_admitted`, also past the limits.

    Raises:
        What `queue` raises, and the error of a job.
    """
    older, is_admitted = jobs, False
    while older:
        queue(older, is_admitted=is_admitted)
        await asyncio.gather(*(job.future for job in older))
        newest = max((job.version or 0 for job in jobs), default=0)
        older = [job for job in jobs if job.version is not None and job.version < newest]
        is_admitted = True
        for job in older:
            future = asyncio.get_running_loop().create_future()
            job.wait(future, job.deadline, caller=job.caller)


def _unreadable(error: OSError) -> Updating | InternalError:
    """What a push is told of files that cannot be used (see `stored`)."""
    if error.errno is None:
        return Updating(f"the files of the weights changed: {error}")
    return InternalError(f"the files of the weights could not be read: {error}")


def _close(updates: Sequence[Update]) -> None:
    for update in updates:
        update.close()
