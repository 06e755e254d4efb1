"""The engine of one replica: items become rows, wait for the device, and come back as rewards.

It knows no HTTP and no Ray; what it measures it tells to a plain callback, `report(name, value,
**labels)`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from tokenreward.batching import Batcher, Entry
from tokenreward.checkpoints.checkpoint import Checkpoint, load_checkpoint, refuse_longer
from tokenreward.checkpoints.reference import with_reference
from tokenreward.engine.job import (
    Job,
    Outcome,
    Rows,
    is_light,
    make_jobs,
    num_tokens_at_least,
    reply_item,
)
from tokenreward.engine.plan import check_words, needs_of, plans, served_by
from tokenreward.engine.postprocess import Plan
from tokenreward.engine.preprocess import Preprocessor
from tokenreward.engine.runner import Runner, max_batch_tokens
from tokenreward.engine.worker import Worker
from tokenreward.errors import DeadlineExceeded, InternalError, VersionNotReached
from tokenreward.forward.layout import LayoutChoice
from tokenreward.forward.own_call import compare_with_own_call
from tokenreward.forward.pair import choose_layouts
from tokenreward.settings import DeploymentSettings
from tokenreward.text.tokenizer import Tokenizer
from tokenreward.wire import RewardsRequest

Report = Callable[..., None]
ResultT = TypeVar("ResultT")

_NUM_INTAKE_THREADS = 2

logger = logging.getLogger(__name__)


def _ignore(name: str, value: float = 1.0, **labels: str) -> None:
    """A report that nobody reads."""


class Engine:
    """Scores requests on one checkpoint. Make one with `load`; use it from one event loop."""

    def __init__(
        self,
        settings: DeploymentSettings,
        checkpoint: Checkpoint,
        verdict: LayoutChoice,
        report: Report,
        vocabulary: Tokenizer,
    ) -> None:
        self.settings = settings
        self._served = served_by(settings)
        self._checkpoint = checkpoint
        self._verdict = verdict
        self._report = report
        self._tokenizer = vocabulary.fingerprint  # here, as the event loop could not spare the time
        self._intake = Preprocessor(
            vocabulary=vocabulary,
            vocab_size=checkpoint.vocab_size,
            num_labels=checkpoint.num_labels,
            max_sequence_tokens=settings.max_sequence_tokens or checkpoint.max_positions,
            suffix_ids=vocabulary.suffix(settings.suffix_text),
        )
        self._device = Runner(verdict.layout, runs_ahead=checkpoint.device.type == "cuda")
        self._max_batch_tokens = settings.max_batch_tokens or max_batch_tokens(checkpoint.device)
        self._batcher: Batcher[Rows, Outcome] = Batcher(
            max_batch_tokens=self._max_batch_tokens,
            max_batch_requests=settings.max_batch_requests,
            max_queued_tokens=settings.max_queued_tokens,
        )
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._intake_threads = ThreadPoolExecutor(_NUM_INTAKE_THREADS, thread_name_prefix="intake")
        # What has been computed does not wait behind what is yet to be tokenised.
        self._reply_thread = ThreadPoolExecutor(1, thread_name_prefix="reply")
        self._tokens_in_intake = 0  # at least
        self._closed = False
        self._shift = Worker(
            self._batcher,
            self._device,
            thread=self._device_thread,
            layout=verdict.layout,
            report=report,
        )
        self._shifts: asyncio.Task[None] | None = None
        report("model_version", settings.version)

    @classmethod
    def load(
        cls,
        settings: DeploymentSettings,
        *,
        report: Report = _ignore,
        say: Callable[[str], None] = logger.info,
    ) -> Engine:
        """Loads the checkpoint and probes it, which also warms it. Blocks. Raises SettingsError,
        CheckpointRefused."""
        needs = needs_of(served_by(settings).values())
        say(f"{settings.name}: loading {settings.model}")
        began = time.monotonic()
        checkpoint = load_checkpoint(settings)
        vocabulary = Tokenizer(
            checkpoint.tokenizer,
            checkpoint.eos_ids,
            settings.max_sequence_tokens or checkpoint.max_positions,
        )
        check_words(settings, vocabulary)
        if "reference" in needs:
            checkpoint = with_reference(checkpoint, settings, vocabulary)
        refuse_longer(checkpoint, settings)
        if checkpoint.adapter_base not in (None, settings.checkpoint):
            say(
                f"{settings.name}: the adapter says that its base is `{checkpoint.adapter_base}`: "
                "is it this one?"
            )
        say(f"{settings.name}: weights loaded in {time.monotonic() - began:.1f} s, probing")
        if settings.task == "reward_model":
            own = compare_with_own_call(checkpoint, vocabulary, settings.suffix_text)
            say(f"{settings.name}: {own}")
        verdict = choose_layouts(
            checkpoint, needs, say=lambda line: say(f"{settings.name}: {line}")
        )
        return cls(settings, checkpoint, verdict, report, vocabulary)

    async def score(
        self,
        request: RewardsRequest,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The reply to a request, ready for JSON: rewards are float32 arrays [units], or base64 if
        asked for.

        Cancelling drops what still waits. Raises RequestError; an item's own error stands in its
        place of the reply.
        """
        if request.min_version is not None and request.min_version > self.settings.version:
            raise VersionNotReached(
                f"`min_version` is {request.min_version}, the weights are version "
                f"{self.settings.version}",
                param="min_version",
            )
        asked = plans(self._served, request)
        self._batcher.refuse_if_full(self._tokens_in_intake)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._score(request, asked, request_id or uuid.uuid4().hex, deadline)
        except TimeoutError:
            raise DeadlineExceeded(f"not finished within {timeout_s:g} s") from None

    def describe(self) -> list[dict[str, Any]]:
        """The scorers of this deployment, as `GET /v1/scorers` shows them (the route is HTTP's to
        add)."""
        settings = self.settings
        shared = {
            "deployment": settings.name,
            "model": settings.model,
            "reference": settings.reference if self._checkpoint.reference is not None else None,
            "version": settings.version,
            "tokenizer": self._tokenizer,
            "layout": self._verdict.layout.name,
            "layout_reason": self._verdict.reason,
            "probe_difference": self._verdict.gap.difference,
            "limits": {
                "max_sequence_tokens": self._intake.max_sequence_tokens,
                "max_batch_tokens": self._max_batch_tokens,
                "max_queued_tokens": settings.max_queued_tokens,
            },
        }
        return [{**served.describe(), **shared} for served in self._served.values()]

    def check_health(self) -> None:
        """Raises if the device is lost or a batch does not end; the replica should then be
        replaced."""
        if self._device.lost is not None:
            raise self._device.lost
        began = self._shift.began
        limit_s = self.settings.max_batch_s
        if began is not None and time.monotonic() - began > limit_s:
            raise InternalError(f"a batch has run for more than {limit_s:g} s (`max_batch_s`)")

    async def close(self) -> None:
        """Stops the steps; whoever still waits, for a thread, in the queue or in a batch, is
        answered with an error."""
        self._closed = True
        if self._shifts is not None:
            self._shifts.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._shifts
        closing = _closing()
        self._batcher.fail_all(closing)
        self._shift.answer_running(closing)
        self._device_thread.shutdown(wait=False, cancel_futures=True)
        self._intake_threads.shutdown(wait=False, cancel_futures=True)
        self._reply_thread.shutdown(wait=False, cancel_futures=True)

    async def _score(
        self, request: RewardsRequest, asked: list[Plan], request_id: str, deadline: float | None
    ) -> dict[str, Any]:
        began = time.monotonic()
        light = is_light(request, asked)
        with self._in_intake(request) as over:
            threads = None if light else self._intake_threads
            jobs = await self._made(threads, make_jobs, request, asked, self._intake, over.is_set)
        tokenize_s = time.monotonic() - began
        entries = self._queue(jobs, deadline)
        try:
            await asyncio.gather(*(entry.future for entry in entries))
        finally:
            for entry in entries:
                entry.future.cancel()
        items = await self._made(
            None if light else self._reply_thread, self._reply_items, jobs, request, asked
        )
        self._count(items, jobs, asked)
        self._report("tokenize_seconds", tokenize_s)
        return {
            "id": request_id,
            "scorer": request.scorer,
            "model": self.settings.model,
            "version": self.settings.version,
            "items": items,
            "usage": _usage(jobs),
            "timing": _timing(jobs, tokenize_s),
        }

    def _queue(self, jobs: Sequence[Job], deadline: float | None) -> list[Entry[Rows, Outcome]]:
        if self._closed:  # since its jobs were asked for
            raise _closing()
        loop = asyncio.get_running_loop()
        shares = self._verdict.layout.shares
        entries = []
        for job in jobs:
            if job.rows:
                job.entry = Entry(
                    job.rows,
                    job.num_tokens,
                    loop.create_future(),
                    deadline,
                    job.prompts if shares else (),
                )
                entries.append(job.entry)
        self._batcher.submit(entries)
        self._report("queued_items", self._batcher.queued_items)
        self._report("queued_tokens", self._batcher.queued_tokens)
        if self._shifts is None or self._shifts.done():
            self._shifts = loop.create_task(self._shift.work_forever())
        return entries

    def _reply_items(
        self, jobs: Sequence[Job], request: RewardsRequest, asked: list[Plan]
    ) -> list[dict[str, Any]]:
        items = [reply_item(job, request, asked, self._intake) for job in jobs]
        for item in items:
            for result in item.get("scorers", {}).values():
                result |= {"model": self.settings.model, "version": self.settings.version}
        return items

    @contextlib.contextmanager
    def _in_intake(self, request: RewardsRequest) -> Iterator[threading.Event]:
        """Meanwhile the request counts for those who come after it as if it waited in the queue.
        The event is set when it is over, also because the caller hung up or the deadline passed:
        cancelling reaches no thread."""
        num_tokens = num_tokens_at_least(request)
        self._tokens_in_intake += num_tokens
        over = threading.Event()
        try:
            yield over
        finally:
            over.set()
            self._tokens_in_intake -= num_tokens

    async def _made(
        self, threads: Executor | None, function: Callable[..., ResultT], *arguments: object
    ) -> ResultT:
        """What the function gives, on a thread or right here. Raises InternalError if the engine
        takes threads away."""
        if threads is None:
            return function(*arguments)
        if self._closed:
            raise _closing()
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closing() from None
            raise

    def _count(
        self, items: Sequence[dict[str, Any]], jobs: Sequence[Job], asked: Sequence[Plan]
    ) -> None:
        for plan in asked:
            results = [item["scorers"][plan.name] if "scorers" in item else item for item in items]
            self._report(
                "items_total", sum(result["error"] is None for result in results), scorer=plan.name
            )
        scored_jobs = []
        for job, item in zip(jobs, items, strict=True):
            errors = [result["error"] for result in (item.get("scorers") or {"": item}).values()]
            for error in errors:
                if error is not None:
                    self._report("errors_total", 1, code=error["code"])
            if None in errors:
                scored_jobs.append(job)
        for kind, count in _usage(scored_jobs).items():
            self._report("tokens_total", count, kind=kind.removesuffix("_tokens"))


def _closing() -> InternalError:
    return InternalError("the engine is closing")


def _usage(jobs: Sequence[Job]) -> dict[str, int]:
    samples = [job.prepared.sample for job in jobs if job.prepared is not None]
    return {
        "prompt_tokens": sum(len(sample.prompt_ids) for sample in samples),
        "response_tokens": sum(len(sample.response_ids) for sample in samples),
    }


def _timing(jobs: Sequence[Job], tokenize_s: float) -> dict[str, float]:
    """The longest wait of an item, and the time of all passes that items of the request were part
    of."""
    outcomes = [job.outcome for job in jobs if job.entry is not None]
    passes = {outcome.batch_number: outcome.compute_s for outcome in outcomes}
    return {
        "queue_s": max((outcome.queue_s for outcome in outcomes), default=0.0),
        "tokenize_s": tokenize_s,
        "compute_s": sum(passes.values()),
    }
