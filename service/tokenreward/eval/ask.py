"""Asks a service for the answers that a dataset needs, several requests in flight.

A request holds as many items as the service answers in a few seconds: the first ones hold two, and
the speed that is measured then says how many. A request that passes its deadline is asked again in
halves, so a slow machine makes a run long and never ends it. Scorers that one deployment serves are
asked in one request, because they share its passes.

Each answer goes into the cache as soon as it is there. This module knows the client; it does not
know what answers are worth.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from tokenreward.eval.answer import CandidateAnswer, answer_of
from tokenreward.eval.cache import append_answers, read_answers
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.request import request_results
from tokenreward.eval.rows import EvalError
from tokenreward.eval.statistics import Timing
from tokenreward.eval.subject import Subject
from tokenreward_client import AsyncClient, DeadlineExceeded, Rewards, ScorerInfo

FIRST_BATCH_ITEMS = 2
MAX_BATCH_ITEMS = 64
"""Items of a call of the client, which is one request unless they are very long."""
REQUEST_S = 4.0
"""What a request should take, the wait behind our other requests included. It is far below any
deadline, and far above what a request costs beside its items."""
MAX_LATE_ITEMS = 3
"""So many items in a row, each asked alone, may pass the deadline before the run ends."""

Queues = dict[tuple[tuple[int, ...], bool], deque[Candidate]]
"""The candidates to ask for, by the indices of the scorers to ask and by whether units are needed:
`return_tokens` is an option of a whole request."""


async def collect_answers(
    client: AsyncClient,
    subjects: Sequence[Subject],
    candidates: Sequence[Candidate],
    *,
    cache: Path | None = None,
    concurrency: int = 8,
    on_start: Callable[[int, int, int], None] = lambda num_missing, num_cached, num_unreadable: (
        None
    ),
    on_answers: Callable[[int, int, int], None] = lambda num_items, num_errors, num_kept: None,
) -> list[list[CandidateAnswer]]:
    """For each scorer one answer per candidate, in order. Equal candidates are asked once.

    Args:
        client: Talks to the service.
        subjects: The scorers under judgement, which one request can ask together.
        candidates: The responses to be scored.
        cache: The file where answers are read and kept; None asks for all of them and keeps none.
        concurrency: The most requests in flight. There are fewer where single items pass the
            deadline.
        on_start: Gets the number of items that will be sent, of answers that the cache had, and of
            the cache's lines that cannot be read.
        on_answers: Gets, after each request, the number of its items, how many answers are errors,
            and how many are in the cache now.

    Raises:
        ClientError: A request as a whole fails for good. The answers until then are in the cache.
        EvalError: The weights changed meanwhile.
    """
    keys = [list(map(subject.key, candidates)) for subject in subjects]
    answers: dict[str, CandidateAnswer] = {}
    num_unreadable = 0
    if cache is not None:
        answers, num_unreadable = read_answers(cache, itertools.chain(*keys))
    queues = _queues(candidates, keys, set(answers))
    on_start(sum(map(len, queues.values())), len(answers), num_unreadable)

    def on_batch(num_items: int, new: Mapping[str, CandidateAnswer]) -> None:
        answers.update(new)
        num_kept = 0 if cache is None else append_answers(cache, new)
        num_errors = sum(answer.error is not None for answer in new.values())
        on_answers(num_items, num_errors, num_kept)

    await _answer_all(client, subjects, queues, concurrency=concurrency, on_batch=on_batch)
    return [list(map(answers.__getitem__, each)) for each in keys]


def next_batch_items(batch_items: int, num_items: int, seconds: float) -> int:
    """How many items the next request holds, after a reply.

    Args:
        batch_items: How many a request holds until now.
        num_items: Items of the request that was answered. One that is smaller than requests are now
            says nothing: it waited behind larger ones.
        seconds: How long it took.

    Returns:
        What a request answers in `REQUEST_S` at this speed; at most twice as many as it held.
    """
    if num_items < batch_items:
        return batch_items
    num_fitting = int(REQUEST_S * num_items / max(seconds, 1e-9))
    return max(1, min(num_fitting, 2 * num_items, MAX_BATCH_ITEMS))


def _queues(
    candidates: Sequence[Candidate], keys: Sequence[Sequence[str]], available: set[str]
) -> Queues:
    """What there is to ask.

    Args:
        candidates: The candidates.
        keys: The key of each answer, [subjects][candidates].
        available: Keys of answers that need not be asked for.
    """
    queues: Queues = {}
    pending = set(available)
    for place, candidate in enumerate(candidates):
        owners = tuple(i for i, each in enumerate(keys) if each[place] not in pending)
        pending.update(keys[i][place] for i in owners)
        if owners:
            queues.setdefault((owners, candidate.needs_units), deque()).append(candidate)
    return queues


async def _answer_all(
    client: AsyncClient,
    subjects: Sequence[Subject],
    queues: Queues,
    *,
    concurrency: int,
    on_batch: Callable[[int, Mapping[str, CandidateAnswer]], None],
) -> None:
    """Empties the queues.

    `on_batch` gets, after each request, how many items it answered, and their answers by key.
    """
    num_workers, batch_items, num_late = concurrency, FIRST_BATCH_ITEMS, 0
    last_reply = time.perf_counter()

    async def work() -> None:
        nonlocal num_workers, batch_items, num_late, last_reply
        while any(queues.values()):
            # Candidates that need units come last, in requests of their own.
            owners, needs_units = min((key for key in queues if queues[key]), key=itemgetter(1))
            queue, group = queues[owners, needs_units], [subjects[owner] for owner in owners]
            batch = [queue.popleft() for _ in range(min(batch_items, len(queue)))]
            began = time.perf_counter()
            results, late = await request_results(client, group, batch)
            now = time.perf_counter()
            timing = (now - began, now - last_reply, len(batch), concurrency)
            last_reply = now
            if late and (len(batch) > 1 or num_workers > 1):
                queue.extendleft(reversed(late))
                batch_items = max(1, len(batch) // 2)
            else:
                num_late = num_late + 1 if late else 0
                if num_late == MAX_LATE_ITEMS:
                    message = f"{num_late} items in a row, each asked alone, passed the deadline"
                    raise DeadlineExceeded(message)
                batch_items = next_batch_items(batch_items, len(batch), now - began)
                late = []
            on_batch(len(batch) - len(late), _new_answers(group, results, late, timing))
            if late and len(batch) == 1:
                break  # No request is smaller. With fewer of them, each gets more of the service.
        num_workers -= 1

    await _all_or_none([asyncio.ensure_future(work()) for _ in range(concurrency)])


def _new_answers(
    subjects: Sequence[Subject],
    results: Sequence[tuple[Candidate, list[Rewards]]],
    late: Sequence[Candidate],
    timing: Timing,
) -> dict[str, CandidateAnswer]:
    """The answers of a request by key, without those that are asked for again.

    Raises:
        EvalError: The weights, or those of a scorer that was asked first, are of another version
            than the listing said.
    """
    answers = {}
    for candidate, each in results:
        if candidate in late:
            continue
        for subject, rewards in zip(subjects, each, strict=True):
            versions = {name: source.version for name, source in rewards.sources.items()}
            _refuse_other_version(subject.info, rewards.version)
            for other in subject.dependencies:
                _refuse_other_version(other, versions.get(other.name))
            answer = answer_of(candidate, rewards, timing, is_signed=subject.is_signed)
            answers[subject.key(candidate)] = answer
    return answers


def _refuse_other_version(info: ScorerInfo, version: int | None) -> None:
    """Raises EvalError if the version that answered is not the one that was listed."""
    if None not in (version, info.version) and version != info.version:
        raise EvalError(
            f"scorer `{info.name}` went from version {info.version} to {version} meanwhile: run "
            "again to judge the new weights"
        )


async def _all_or_none(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all tasks; if one raises, the others are cancelled first."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
