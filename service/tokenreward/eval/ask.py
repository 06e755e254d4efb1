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
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from tokenreward.errors import DeadlineExceededError
from tokenreward.eval.answer import CandidateAnswer, answer_of
from tokenreward.eval.cache import append_answers, read_answers
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.rows import EvalError
from tokenreward.eval.statistics import Timing
from tokenreward.eval.subject import Subject
from tokenreward.wire import ErrorDetail
from tokenreward_client import (
    AsyncClient,
    ClientError,
    DeadlineExceeded,
    Rewards,
    ServerRefused,
)

FIRST_BATCH_ITEMS = 2
MAX_BATCH_ITEMS = 64
"""Items of a call of the client, which is one request unless they are very long."""
REQUEST_S = 4.0
"""What a request should take, the wait behind our other requests included. It is far below any
deadline, and far above what a request costs beside its items."""
MAX_LATE_ITEMS = 3
"""So many items in a row, each asked alone, may pass the deadline before the run ends."""

_LATE = DeadlineExceededError.code

Queues = dict[tuple[tuple[int, ...], bool], deque[Candidate]]
"""The candidates to ask for, by the indices of the scorers to ask and by whether units are needed:
`return_tokens` is an option of a whole request."""


async def try_out(client: AsyncClient, subjects: Sequence[Subject], candidate: Candidate) -> None:
    """Ask for one item and drop its answer.

    A request that the service refuses as a whole is thus refused before the long run. And the extra
    seconds of a first request (connections, lazy loading) count in no latency.

    Raises:
        EvalError: The service refuses the request.
        ClientError: It cannot be reached or does not answer.
    """
    try:
        await _score(client, subjects, [candidate])
    except ServerRefused as error:
        if len(subjects) > 1:
            for subject in subjects:  # the one that is at fault is named
                await try_out(client, [subject], candidate)
        labels = ", ".join(subject.label for subject in subjects)
        raise EvalError(f"scorer `{labels}`: {error}") from None


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
    keys = [[subject.key(candidate) for candidate in candidates] for subject in subjects]
    answers: dict[str, CandidateAnswer] = {}
    num_unreadable = 0
    if cache is not None:
        answers, num_unreadable = read_answers(cache, itertools.chain(*keys))
    queues: Queues = {}
    pending = set(answers)
    for place, candidate in enumerate(candidates):
        owners = tuple(i for i, each in enumerate(keys) if each[place] not in pending)
        pending.update(keys[i][place] for i in owners)
        if owners:
            queues.setdefault((owners, candidate.needs_units), deque()).append(candidate)
    on_start(sum(map(len, queues.values())), len(answers), num_unreadable)

    def on_batch(num_items: int, new: Mapping[str, CandidateAnswer]) -> None:
        answers.update(new)
        num_kept = 0 if cache is None else append_answers(cache, new)
        num_errors = sum(answer.error is not None for answer in new.values())
        on_answers(num_items, num_errors, num_kept)

    await _answer_all(client, subjects, queues, concurrency=concurrency, on_batch=on_batch)
    return [[answers[key] for key in each] for each in keys]


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
            results = await _results(client, group, batch)
            now = time.perf_counter()
            timing = (now - began, now - last_reply, len(batch), concurrency)
            last_reply = now
            late = [candidate for candidate, each in results if _is_late(each)]
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
            new = _new_answers(group, results, late, timing)
            on_batch(len(batch) - len(late), new)
            if late and len(batch) == 1:
                break  # No request is smaller. With fewer of them, each gets more of the service.
        num_workers -= 1

    await _all_or_none([asyncio.ensure_future(work()) for _ in range(concurrency)])


async def _results(
    client: AsyncClient, subjects: Sequence[Subject], candidates: Sequence[Candidate]
) -> list[tuple[Candidate, list[Rewards]]]:
    """Each candidate with its result per scorer.

    If the whole request passed the deadline, that is the result of each. So is the refusal of an
    item that was sent alone and is too large.

    Raises:
        ClientError: The request fails for another reason.
    """
    try:
        results = await _score(client, subjects, candidates)
    except ClientError as error:
        is_too_large = isinstance(error, ServerRefused) and error.status == 413
        if error.code != _LATE and not (is_too_large and len(candidates) == 1):
            raise
        detail = ErrorDetail(code=error.code or "failed", message=str(error.args[0]))
        results = [[Rewards(None, error=detail)] * len(subjects)] * len(candidates)
    return list(zip(candidates, results, strict=True))


async def _score(
    client: AsyncClient, subjects: Sequence[Subject], candidates: Sequence[Candidate]
) -> list[list[Rewards]]:
    """The client's results [candidates][subjects]. All candidates need units, or none does."""
    items = [candidate.item for candidate in candidates]
    return_tokens = candidates[0].needs_units
    if len(subjects) == 1:
        (subject,) = subjects
        single = await client.score(
            items,
            subject.info.name,
            options=subject.options,
            credit=subject.credit,
            return_tokens=return_tokens,
            on_error="return",
        )
        return [[rewards] for rewards in single]
    several = await client.score(
        items,
        scorers=[subject.info.name for subject in subjects],
        options={subject.info.name: subject.options for subject in subjects},
        credit={subject.info.name: subject.credit for subject in subjects},
        return_tokens=return_tokens,
        on_error="return",
    )
    results = []
    for rewards in several:
        by_name = rewards.scorers or {}
        # The tokens stand beside the scorers, and an error of the item is the error of each.
        results.append(
            [
                replace(by_name.get(subject.info.name, rewards), tokens=rewards.tokens)
                for subject in subjects
            ]
        )
    return results


def _is_late(results: Sequence[Rewards]) -> bool:
    """Whether one of an item's results is that the deadline passed."""
    return any(each.error is not None and each.error.code == _LATE for each in results)


def _new_answers(
    subjects: Sequence[Subject],
    results: Sequence[tuple[Candidate, list[Rewards]]],
    late: Sequence[Candidate],
    timing: Timing,
) -> dict[str, CandidateAnswer]:
    """The answers of a request by key, without those that are asked for again.

    Raises:
        EvalError: The weights are of another version than the listing said.
    """
    answers = {}
    for candidate, each in results:
        if candidate in late:
            continue
        for subject, rewards in zip(subjects, each, strict=True):
            version = subject.info.version
            if None not in (rewards.version, version) and rewards.version != version:
                raise EvalError(
                    f"scorer `{subject.info.name}` went from version {version} to "
                    f"{rewards.version} meanwhile: run again to judge the new weights"
                )
            answers[subject.key(candidate)] = answer_of(candidate, rewards, timing)
    return answers


async def _all_or_none(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all tasks; if one raises, the others are cancelled first."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
