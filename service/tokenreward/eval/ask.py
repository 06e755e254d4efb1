"""Asks a service for the answers that a dataset needs: in batches, several requests in flight.

Each answer goes into the cache as soon as it is there. It knows the client; it does not know what
answers are worth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenreward.eval.answer import CandidateAnswer, answer_of
from tokenreward.eval.cache import AnswerCache
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.rows import EvalError
from tokenreward.eval.statistics import RequestTiming
from tokenreward.eval.subject import Subject
from tokenreward_client import AsyncClient, Rewards, ServerRefused

BATCH_ITEMS = 64
"""Items per call of the client, which is one request unless they are very long."""


@dataclass(frozen=True, slots=True)
class Run:
    """What asking needs.

    `concurrency` is the number of requests in flight. `on_start` gets the number of items that will
    be sent and the number of answers that the cache had. `on_answers` gets, after each request, the
    number of its answers and how many of them are errors.
    """

    client: AsyncClient
    cache: AnswerCache | None = None
    concurrency: int = 8
    on_start: Callable[[int, int], None] = lambda num_missing, num_cached: None
    on_answers: Callable[[int, int], None] = lambda num_answers, num_errors: None


async def try_out(run: Run, subject: Subject, candidates: Sequence[Candidate]) -> None:
    """Ask for one item and drop its answer.

    A request that the service refuses as a whole is thus refused before the long run. And the extra
    seconds of a first request (connections, lazy loading) count in no latency.

    Raises:
        EvalError: The service refuses the request.
        ClientError: It cannot be reached or does not answer.
    """
    try:
        await _score(run, subject, [candidates[0]])
    except ServerRefused as error:
        raise EvalError(f"scorer `{subject.label}`: {error}") from None


async def collect_answers(
    run: Run, subject: Subject, candidates: Sequence[Candidate]
) -> list[CandidateAnswer]:
    """One answer per candidate, in order. Equal candidates are asked once.

    Raises:
        ClientError: A request as a whole fails for good. The answers until then are in the cache.
        EvalError: The weights changed meanwhile.
    """
    keys = [subject.key(candidate) for candidate in candidates]
    answers: dict[str, CandidateAnswer] = {}
    if run.cache is not None:
        answers = run.cache.read(keys)
    missing = {
        key: candidate
        for key, candidate in zip(keys, candidates, strict=True)
        if key not in answers
    }
    run.on_start(len(missing), len(answers))
    # All workers take from one iterator: a worker that is free takes the next batch.
    batches = _batches(missing)
    last_reply = time.perf_counter()

    async def work() -> None:
        nonlocal last_reply
        for batch in batches:
            began = time.perf_counter()
            results = await _score(run, subject, list(batch.values()))
            now = time.perf_counter()
            timing = RequestTiming(now - began, now - last_reply, len(batch), run.concurrency)
            last_reply = now
            _refuse_other_versions(subject, results)
            new = {}
            for (key, candidate), rewards in zip(batch.items(), results, strict=True):
                new[key] = answer_of(candidate, rewards, timing)
            if run.cache is not None:
                run.cache.append(new)
            answers.update(new)
            run.on_answers(len(new), sum(answer.error is not None for answer in new.values()))

    await _all_or_none([asyncio.ensure_future(work()) for _ in range(run.concurrency)])
    return [answers[key] for key in keys]


def _batches(missing: Mapping[str, Candidate]) -> Iterator[dict[str, Candidate]]:
    """The candidates in order, `BATCH_ITEMS` at a time; those that need units come last, in batches
    of their own, since `return_tokens` is an option of the whole request."""
    for needs_units in (False, True):
        entries = [entry for entry in missing.items() if entry[1].needs_units == needs_units]
        for first in range(0, len(entries), BATCH_ITEMS):
            yield dict(entries[first : first + BATCH_ITEMS])


async def _score(run: Run, subject: Subject, candidates: Sequence[Candidate]) -> list[Rewards]:
    """The client's results for these candidates, which all need units or all do not."""
    return await run.client.score(
        [candidate.item for candidate in candidates],
        subject.info.name,
        options=subject.options,
        credit=subject.credit,
        return_tokens=candidates[0].needs_units,
        on_error="return",
    )


def _refuse_other_versions(subject: Subject, results: Sequence[Rewards]) -> None:
    """Raises EvalError if the weights are of another version than the listing said."""
    version = subject.info.version
    for rewards in results:
        if None not in (rewards.version, version) and rewards.version != version:
            raise EvalError(
                f"scorer `{subject.info.name}` went from version {version} to {rewards.version} "
                "meanwhile: run again to judge the new weights"
            )


async def _all_or_none(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all tasks; if one raises, the others are cancelled first."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
