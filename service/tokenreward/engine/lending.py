"""Waiting jobs that one replica lends and another one computes.

    lend       here: the jobs whose turns come last leave the queue, as rows and needs
    compute    there: they go through the queue of the other replica, as those of one more caller
    repay      here: their callers get the outputs, and what has none waits here again
    take_back  here: the other replica is gone or late, and all of the loan waits here again

A reply has one version, so outputs of other weights than those that serve here are computed again.
Two redeploys may have one version and different weights, so weights are compared whole. This module
knows engines, and neither other replicas nor how a loan travels.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenreward.contract import Model, Needs, Outputs, Row, RowRequest
from tokenreward.engine.engine import Engine
from tokenreward.engine.job import Job
from tokenreward.engine.usage import Report
from tokenreward.errors import ItemError, OutOfMemory, RequestError
from tokenreward.wire.weights import Weights

# Of the tokens of a loan, and of its outputs. Ray's gRPC takes messages of 4 MiB.
MAX_LOAN_BYTES = 2**21
_JOB_BYTES = 500  # about, for what is no array
# A loan is late after this many times the time that it would take here, within bounds: the other
# replica has callers of its own, and a stranger on its machine may slow it down.
_PATIENCE = 4.0
_MIN_PATIENCE_S = 2.0
_MAX_PATIENCE_S = 30.0
# Work that this replica does sooner is not worth a message.
_MIN_WAIT_S = 0.1
_MIN_LOAN_S = 0.05

_CALLER = ("another replica",)  # the callers of one replica wait behind each other at another

# What is wanted of a row, and the row: its ids as int32, which is half as large, its start, its
# stop, the model that reads it, and its `num_first`.
BorrowedRow = tuple[Needs, np.ndarray, tuple[int, int, Model, int | None]]
# A job of a loan: its rows, seconds until its deadline (None for no deadline), and seconds that it
# waited in the lender's queue.
BorrowedJob = tuple[list[BorrowedRow], float | None, float]
# What became of it: the outputs of its rows, or the error of the item, or None if the lender must
# compute it; seconds in the queues of both replicas; seconds that its batch took; and a number that
# names the batch among those of the replica that computed it.
LoanOutputs = tuple[list[Outputs] | ItemError | None, float, float, int]


class Loan(NamedTuple):
    """Jobs for another replica to compute.

    Attributes:
        number: Names the loan among all of the lender's process.
        weights: The weights that must compute it.
        jobs: What is to be computed.
        num_tokens: Tokens of all its rows.
    """

    number: int
    weights: Weights
    jobs: list[BorrowedJob]
    num_tokens: int


class Repayment(NamedTuple):
    """The outputs of a loan.

    Attributes:
        number: The loan's number.
        weights: The weights that computed it.
        jobs: In the order of the loan. Empty if the loan was refused.
    """

    number: int
    weights: Weights
    jobs: list[LoanOutputs]


class Lending:
    """Lends the jobs of one engine, and computes those of others on it.

    Args:
        engine: The engine. All methods are called on its event loop.
        report: Told `lent_items_total`.
    """

    _numbers = itertools.count(1)  # of the loans of this process, whichever engine lends

    def __init__(self, engine: Engine, report: Report) -> None:
        self._engine = engine
        self._report = report
        self._loans: dict[int, list[Job]] = {}
        self._batch_keys = itertools.count(-1, -1)  # batches here are counted from 1

    @property
    def weights(self) -> Weights:
        """What serves here."""
        return self._engine.settings.weights

    @property
    def is_idle(self) -> bool:
        """Whether none of this replica's own callers waits, and there is room for one more loan
        behind the one that runs."""
        batcher = self._engine.batcher
        if batcher.waiting_tokens > batcher.max_batch_tokens:
            return False
        return all(job.caller == _CALLER for job in batcher.waiting)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits here."""
        return self._engine.batcher.queued_items == 0

    async def wait_for_jobs(self) -> None:
        """Waits until something waits here."""
        await self._engine.batcher.wait()

    def surplus_tokens(self) -> int:
        """Tokens that wait here longer than a message takes; 0 if there are none."""
        batcher = self._engine.batcher
        rate = batcher.tokens_per_s
        least = batcher.max_batch_tokens if rate is None else rate * _MIN_WAIT_S
        return batcher.waiting_tokens if batcher.waiting_tokens > least else 0

    def patience_s(self, num_tokens: int) -> float:
        """How long another replica may take for so many tokens before a loan is late."""
        rate = self._engine.batcher.tokens_per_s
        if not rate:
            return _MAX_PATIENCE_S
        return min(_MIN_PATIENCE_S + _PATIENCE * num_tokens / rate, _MAX_PATIENCE_S)

    def lend(self, weights: Weights, max_tokens: int, *, lends_all: bool = False) -> Loan | None:
        """Lends jobs that wait.

        Args:
            weights: What the other replica serves.
            max_tokens: The most tokens of the loan.
            lends_all: Whether more than half of what waits may leave, as this replica stops.

        Returns:
            The loan; None if too little waits or the weights differ.
        """
        if weights != self.weights:
            return None
        batcher, left_bytes = self._engine.batcher, MAX_LOAN_BYTES

        def fits(job: Job) -> bool:
            nonlocal left_bytes
            num_bytes = num_loan_bytes(job.requests)
            if num_bytes > left_bytes:
                return False
            left_bytes -= num_bytes
            return True

        least_tokens = math.ceil(_MIN_LOAN_S * (batcher.tokens_per_s or 0))
        max_tokens = min(max(max_tokens, least_tokens), batcher.max_batch_tokens)
        jobs = batcher.lend(max_tokens, lends_all=lends_all, accepts=fits)
        if not jobs:
            return None
        number = next(self._numbers)
        self._loans[number] = jobs
        try:
            borrowed = [_borrowed(job) for job in jobs]
            return Loan(number, weights, borrowed, sum(job.num_tokens for job in jobs))
        except BaseException:
            self.take_back(number)
            raise

    async def compute(self, loan: Loan) -> Repayment:
        """Computes a loan of another replica. Callers here have turns, too.

        What fails for reasons of this replica has no outputs: out of memory, shutdown, an
        error of the device, a deadline, other weights meanwhile.
        """
        engine, refusal = self._engine, Repayment(loan.number, loan.weights, [])
        if loan.weights != self.weights:
            return refusal
        event_loop, now = asyncio.get_running_loop(), time.monotonic()
        jobs = []
        for index, (rows, left_s, waited_s) in enumerate(loan.jobs):
            job = Job(index=index, requests=[_request(row) for row in rows])
            job.count_tokens()
            deadline = None if left_s is None else now + left_s
            job.wait(event_loop.create_future(), deadline, caller=_CALLER)
            job.queued_at = now - waited_s
            job.stays = True  # it is not lent on
            jobs.append(job)
        try:
            engine.queue(jobs, is_admitted=True)
            await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)
        except RequestError:
            return refusal
        finally:
            for job in jobs:
                job.future.cancel()
        outputs = [_outputs_of(job, loan.weights.version) for job in jobs]
        return Repayment(loan.number, loan.weights, outputs)

    def repay(self, repayment: Repayment) -> None:
        """Answers the callers of a loan. A loan that was taken back, or repaid, is ignored."""
        jobs = self._loans.pop(repayment.number, None)
        if jobs is None:
            return
        unpaid = dict.fromkeys(jobs)
        batch_keys: dict[int, int] = {}
        try:
            if repayment.weights != self.weights or len(repayment.jobs) != len(jobs):
                return
            for job, result in zip(jobs, repayment.jobs, strict=True):
                outputs, queue_s, compute_s, batch_number = result
                if outputs is None or not _is_answer(job, outputs):
                    continue
                batch_key = batch_keys.setdefault(batch_number, next(self._batch_keys))
                del unpaid[job]
                if self._engine.batcher.settle(job) and not job.future.done():
                    job.outputs, job.queue_s, job.compute_s = outputs, queue_s, compute_s
                    job.batch_number, job.version = batch_key, repayment.weights.version
                    job.future.set_result(None)
        finally:  # also if some outputs cannot be read: nobody else computes the jobs behind them
            self._return(list(unpaid))
            self._report("lent_items_total", len(jobs) - len(unpaid), outcome="computed")

    def take_back(self, number: int) -> None:
        """Lets all jobs of a loan wait here again. They are not lent once more."""
        self._return(self._loans.pop(number, []))

    def _return(self, jobs: Sequence[Job]) -> None:
        self._engine.batcher.take_back(jobs)
        self._report("lent_items_total", len(jobs), outcome="returned")


def num_loan_bytes(requests: Sequence[RowRequest]) -> int:
    """About how large a job is on its way out, or its outputs on their way back: the larger one."""
    num_ids = sum(len(row.ids) for row, _ in requests)
    num_outputs = 0
    for row, needs in requests:
        num_places = row.stop - row.start + 1
        num_each = 2 * len(needs.temperatures) + len(needs.labels) + 6  # ids and ranks are 8 bytes
        num_each += 3 * (needs.top_k or 0)
        num_outputs += num_places * num_each + len(row.ids) * len(needs.attention)
    return _JOB_BYTES + 4 * max(num_ids, num_outputs)


def _borrowed(job: Job) -> BorrowedJob:
    now = time.monotonic()
    rows: list[BorrowedRow] = [
        (needs, row.ids.astype(np.int32), (row.start, row.stop, row.model, row.num_first))
        for row, needs in job.requests
    ]
    left_s = None if job.deadline is None else job.deadline - now
    return rows, left_s, now - job.queued_at


def _request(row: BorrowedRow) -> RowRequest:
    needs, ids, fields = row
    return RowRequest(Row(ids.astype(np.int64), *fields), needs)


def _outputs_of(job: Job, version: int) -> LoanOutputs:
    """What the lender gets for a job. A failure that is this replica's own is no answer."""
    outputs: list[Outputs] | ItemError | None = None
    if not job.future.cancelled() and job.future.exception() is None and job.version == version:
        outputs = job.outputs
    if isinstance(outputs, OutOfMemory):
        outputs = None
    if isinstance(outputs, list):
        pairs = zip(outputs, job.requests, strict=True)
        outputs = [_needed(each, needs) for each, (_, needs) in pairs]
    return outputs, job.queue_s, job.compute_s, job.batch_number


def _needed(outputs: Outputs, needs: Needs) -> Outputs:
    """The outputs without the columns that other rows of the batch needed."""
    if outputs.top_logits is None or outputs.top_ids is None:
        return outputs
    fields = {name: getattr(outputs, name) for name in Outputs.__slots__}
    for name in ("top_logits", "top_ids"):
        fields[name] = fields[name][:, : needs.top_k]
    return Outputs(**fields)


def _is_answer(job: Job, outputs: object) -> bool:
    """Whether outputs from elsewhere are what the job's rows need, by kind and length."""
    if isinstance(outputs, ItemError):
        return True
    if not isinstance(outputs, list) or len(outputs) != len(job.requests):
        return False
    pairs = zip(outputs, job.requests, strict=True)
    return all(isinstance(each, Outputs) and each.answers(request) for each, request in pairs)
