"""The engine of one replica: items become rows, wait for the device, and come back as rewards.

    preprocess -> batching -> worker, runner -> postprocess

It knows no HTTP and no Ray. What it measures it tells to a plain callback, `report(name, value,
**labels)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tokenreward.batching import Batcher
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.combine import combine, refuse_unequal_units
from tokenreward.contract import MAX_OPTION_CHARACTERS
from tokenreward.engine.job import Job
from tokenreward.engine.loading import load_checkpoint_of, load_layout
from tokenreward.engine.outputs import OutputBudget
from tokenreward.engine.plan import Plan, served_scorers
from tokenreward.engine.postprocess import item_result
from tokenreward.engine.preprocess import Preprocessor
from tokenreward.engine.preprocess_stage import PreprocessStage, ThreadQueue, closing
from tokenreward.engine.runner import Runner, max_batch_tokens
from tokenreward.engine.update import UpdatableEngine, compute_by_one_version
from tokenreward.engine.usage import Report, report_results, timing_of, usage_of
from tokenreward.engine.worker import Worker
from tokenreward.errors import DeadlineExceededError, InternalError, VersionNotReached
from tokenreward.forward.layout import Layout
from tokenreward.forward.own_call import skipped_token
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import ItemResult, Reply, RewardsRequest

logger = logging.getLogger(__name__)


class Engine(UpdatableEngine):
    """Scores requests on one checkpoint. Make one with `load`; use it from one event loop.

    Args:
        settings: The deployment's settings.
        checkpoint: The model and its tokenizer.
        layout: How rows go through the model.
        report: Called with each metric.
        tokenizer: The project's view of the checkpoint's tokenizer.

    Attributes:
        settings: The deployment's settings.
        checkpoint: The model and its tokenizer.
        tokenizer: The project's view of that tokenizer.
        scorers: The scorers that the deployment serves, by name.
        batcher: The queue.
        runner: Runs the batches on the device.
        worker: Takes batches from the queue and answers them.
        device_thread: One thread, which owns the device.
        preprocess: Makes jobs of requests.
        postprocess_threads: One thread, which makes results of outputs. What has been computed is
            answered while other requests are still tokenised.
        outputs: How many numbers beside rewards may be there at a time.
    """

    def __init__(
        self,
        settings: DeploymentSettings,
        checkpoint: Checkpoint,
        layout: Layout,
        report: Report,
        tokenizer: Tokenizer,
    ) -> None:
        self.settings = settings
        self.scorers = served_scorers(settings)
        if checkpoint.is_classifier:
            self.scorers = {name: each.without_values() for name, each in self.scorers.items()}
        self.checkpoint = checkpoint
        self._report = report
        self.tokenizer = tokenizer
        self._fingerprint = tokenizer.fingerprint  # at load: it would block the event loop
        self._preprocessor = Preprocessor(
            tokenizer=tokenizer,
            vocab_size=checkpoint.vocab_size,
            num_labels=checkpoint.num_labels,
            max_sequence_tokens=settings.max_sequence_tokens or checkpoint.max_positions,
            suffix_ids=tokenizer.suffix(settings.suffix_text),
            skipped_id=None if settings.suffix_text else skipped_token(checkpoint),
            reads_conversation=settings.scored_text == "conversation",
            predicts=checkpoint.task == "causal_lm",
        )
        self._max_batch_tokens = settings.max_batch_tokens or max_batch_tokens(
            checkpoint.placement.first
        )
        self.batcher: Batcher[Job] = Batcher(
            max_batch_tokens=self._max_batch_tokens,
            max_batch_requests=settings.max_batch_requests,
            max_queued_tokens=settings.max_queued_tokens,
        )
        self.runner = Runner(layout, num_ahead=checkpoint.placement.num_ahead)
        self.device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self.preprocess = PreprocessStage(
            self._preprocessor,
            self.batcher,
            max_queued_tokens=settings.max_queued_tokens,
            scorers=self.scorers,
        )
        self.postprocess_threads = ThreadQueue(1, "postprocess")
        self.outputs = OutputBudget()
        self.worker = Worker(self.batcher, self.runner, thread=self.device_thread, report=report)
        self._is_closed = False
        self._work: asyncio.Task[None] | None = None
        self.note_version()

    @classmethod
    def load(
        cls,
        settings: DeploymentSettings,
        *,
        report: Report = lambda *args, **labels: None,
        say: Callable[[str], None] = logger.info,
    ) -> Engine:
        """Loads the checkpoint and probes it, which also warms it. Blocks.

        Args:
            settings: The deployment's settings.
            report: Called with each metric.
            say: Called with each line of progress.

        Raises:
            SettingsError: The settings do not fit the checkpoint.
            CheckpointRefused: The checkpoint cannot be served.
        """
        scorers = served_scorers(settings)
        checkpoint, tokenizer = load_checkpoint_of(settings, scorers, say)
        layout = load_layout(checkpoint, tokenizer, settings, scorers, say)
        return cls(settings, checkpoint, layout, report, tokenizer)

    async def score(
        self,
        request: RewardsRequest,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        caller: str = "",
    ) -> Reply:
        """Scores the items of a request. Cancelling it drops what still waits.

        Args:
            request: The request.
            request_id: What the reply calls it; made up if None.
            timeout_s: Seconds that it may take; None for no limit.
            caller: Who asks. Callers take turns by tokens.

        Returns:
            The reply, whose rewards are float32 arrays [units]. An item that fails has its own
            error in its place.

        Raises:
            RequestError: The request as a whole is refused.
        """
        if request.min_version is not None and request.min_version > self.version:
            raise VersionNotReached(
                f"version {request.min_version} is needed, the weights are version {self.version}",
                param="min_version",
            )
        if request.combine is not None:
            # All scorers of a deployment share its tokenizer.
            refuse_unequal_units(request, dict.fromkeys(request.names, self._fingerprint))
        self.batcher.refuse_if_full(self.preprocess.num_tokens)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._score(request, request_id or uuid.uuid4().hex, deadline, caller)
        except TimeoutError:
            raise DeadlineExceededError(f"not finished within {timeout_s:.3g} s") from None

    def describe(self) -> list[dict[str, Any]]:
        """The scorers of this deployment, as `GET /v1/scorers` shows them. HTTP adds the route."""
        settings, layout, reference = self.settings, self.runner.layout, None
        if self.checkpoint.reference is not None:
            reference = settings.reference
        shared = {
            "deployment": settings.name,
            "model": settings.model,
            "reference": reference,
            "version": settings.version,
            "tokenizer": self._fingerprint,
            "layout": layout.name,
            "layout_reason": layout.reason,
            "probe_difference": layout.gap and layout.gap.difference,
            "probe_note": self.probe_note,
            "limits": {
                "max_sequence_tokens": self._preprocessor.max_sequence_tokens,
                "max_batch_tokens": self._max_batch_tokens,
                "max_queued_tokens": settings.max_queued_tokens,
                "max_option_characters": MAX_OPTION_CHARACTERS,
            },
        }
        return [{**served.listing, **shared} for served in self.scorers.values()]

    @property
    def num_preprocess_tokens(self) -> int:
        """Tokens, at least, of the requests that are being tokenised."""
        return self.preprocess.num_tokens

    def check_health(self) -> None:
        """Raises if the device is lost or a batch does not end: the replica must be replaced."""
        if self.runner.lost is not None:
            raise self.runner.lost
        busy_since, limit_s = self.worker.busy_since, self.settings.max_batch_s
        if busy_since is not None and time.monotonic() - busy_since > limit_s:
            raise InternalError(f"a batch has run for more than {limit_s:g} s (`max_batch_s`)")

    async def close(self) -> None:
        """Ends the work. A request that still waits, for a thread, in the queue or in a batch, is
        answered with an error."""
        self._is_closed = True
        self.stop_probe()
        self.device_thread.shutdown(wait=False, cancel_futures=True)
        self.preprocess.threads.close()
        self.postprocess_threads.close()
        if self._work is not None:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work
        error = closing()
        self.batcher.fail_all(error)
        self.worker.fail_unanswered(error)

    async def _score(
        self, request: RewardsRequest, request_id: str, deadline: float | None, caller: str
    ) -> Reply:
        began = time.monotonic()
        plans, jobs, light = await self.preprocess.jobs(request, caller)
        tokenize_s = time.monotonic() - began
        queued = [job for job in jobs if job.requests]
        for job in queued:
            job.wait(asyncio.get_running_loop().create_future(), deadline, caller=caller)
        with self.outputs.hold(sum(job.num_numbers for job in queued)):
            try:
                await compute_by_one_version(queued, self.queue)
            finally:
                for job in queued:
                    job.future.cancel()
            served = self.served_by(jobs)
            results = self._results(jobs, request, plans, served)
            if light:
                items = list(results)
            else:
                items = await self.postprocess_threads.collect(lambda: results, caller=caller)
        report_results(self._report, items, jobs, plans)
        self._report("tokenize_seconds", tokenize_s)
        return Reply(
            id=request_id,
            scorer=request.scorer,
            model=served[0],
            version=served[1],
            items=items,
            usage=usage_of(jobs),
            timing=timing_of(queued, tokenize_s),
        )

    def queue(self, jobs: Sequence[Job], *, is_admitted: bool = False) -> None:
        """Queues jobs, all or none. Jobs that are admitted, here or at another replica, have not
        arrived now and may pass the limits. Raises Overloaded, LargerThanQueue, InternalError."""
        if self._is_closed:  # it may have closed while the jobs were made
            raise closing()
        if not self.runner.layout.shares:
            for job in jobs:
                job.prompts = ()
        self.batcher.submit(jobs, is_admitted=is_admitted)
        if not is_admitted:
            self.worker.load.note_arrival(jobs)
        self._report("queued_items", self.batcher.queued_items)
        self._report("queued_tokens", self.batcher.waiting_tokens)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self.worker.run_forever())

    def _results(
        self,
        jobs: Sequence[Job],
        request: RewardsRequest,
        plans: Sequence[Plan],
        served: tuple[str, int],
    ) -> Iterator[ItemResult]:
        """The result of each item, then the weighted sums that the request wants."""
        items = []
        for job in jobs:
            item = item_result(job, request, plans, self.tokenizer)
            for result in (item.scorers or {}).values():
                result.model, result.version = served
            items.append(item)
            yield item
        if request.combine is not None:
            combine(items, request.combine)
