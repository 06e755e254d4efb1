"""Asks a service for the answers that a dataset needs: in batches, several requests in flight.

Each answer goes into the cache as soon as it is there. It knows the client; it does not know what
answers are worth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from tokenreward.eval.answer import CandidateAnswer, answer_of
from tokenreward.eval.cache import AnswerCache
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.rows import EvalError
from tokenreward.eval.subject import Subject
from tokenreward_client import AsyncClient, Rewards, ServerRefused

BATCH_ITEMS = 64
"""Items per call of the client, which is one request unless they are very long."""


async def try_out(client: AsyncClient, subject: Subject, candidate: Candidate) -> None:
    """Ask for one item and drop its answer.

    A request that the service refuses as a whole is thus refused before the long run. And the extra
    seconds of a first request (connections, lazy loading) count in no latency.

    Raises:
        EvalError: The service refuses the request.
        ClientError: It cannot be reached or does not answer.
    """
    try:
        await _score(client, subject, [candidate])
    except ServerRefused as error:
        raise EvalError(f"scorer `{subject.label}`: {error}") from None


async def collect_answers(
    client: AsyncClient,
    subject: Subject,
    candidates: Sequence[Candidate],
    *,
    cache: AnswerCache | None = None,
    concurrency: int = 8,
    on_start: Callable[[int, int], None] = lambda num_missing, num_cached: None,
    on_answers: Callable[[int, int], None] = lambda num_answers, num_errors: None,
) -> list[CandidateAnswer]:
    """One answer per candidate, in order. Equal candidates are asked once.

    Args:
        client: Talks to the service.
        subject: The scorer under judgement.
        candidates: The responses to be scored.
        cache: Where answers are read and kept; None asks for all of them and keeps none.
        concurrency: The number of requests in flight.
        on_start: Gets the number of items that will be sent and the number of answers that the
            cache had.
        on_answers: Gets, after each request, the number of its answers and how many of them are
            errors.

    Raises:
        ClientError: A request as a whole fails for good. The answers until then are in the cache.
        EvalError: The weights changed meanwhile.
    """
    keys = [subject.key(candidate) for candidate in candidates]
    answers: dict[str, CandidateAnswer] = {}
    if cache is not None:
        answers = cache.read(keys)
    missing = {
        key: candidate
        for key, candidate in zip(keys, candidates, strict=True)
        if key not in answers
    }
    on_start(len(missing), len(answers))

    def on_batch(new: dict[str, CandidateAnswer]) -> None:
        if cache is not None:
            cache.append(new)
        answers.update(new)
        on_answers(len(new), sum(answer.error is not None for answer in new.values()))

    await _answer_all(client, subject, missing, concurrency=concurrency, on_batch=on_batch)
    return [answers[key] for key in keys]


async def _answer_all(
    client: AsyncClient,
    subject: Subject,
    missing: Mapping[str, Candidate],
    *,
    concurrency: int,
    on_batch: Callable[[dict[str, CandidateAnswer]], None],
) -> None:
    """Asks for the answers to these candidates; `on_batch` gets those of each request, by key."""
    # All workers take from one iterator: a worker that is free takes the next batch.
    batches = _batches(missing)
    last_reply = time.perf_counter()

    async def work() -> None:
        nonlocal last_reply
        for batch in batches:
            began = time.perf_counter()
            results = await _score(client, subject, list(batch.values()))
            now = time.perf_counter()
            timing = (now - began, now - last_reply, len(batch), concurrency)
            last_reply = now
            _refuse_other_versions(subject, results)
            new = {}
            for (key, candidate), rewards in zip(batch.items(), results, strict=True):
                new[key] = answer_of(candidate, rewards, timing)
            on_batch(new)

    await _all_or_none([asyncio.ensure_future(work()) for _ in range(concurrency)])


def _batches(missing: Mapping[str, Candidate]) -> Iterator[dict[str, Candidate]]:
    """The candidates in order, `BATCH_ITEMS` at a time; those that need units come last, in batches
    of their own, since `return_tokens` is an option of the whole request."""
    for needs_units in (False, True):
        entries = [entry for entry in missing.items() if entry[1].needs_units == needs_units]
        for first in range(0, len(entries), BATCH_ITEMS):
            yield dict(entries[first : first + BATCH_ITEMS])


async def _score(
    client: AsyncClient, subject: Subject, candidates: Sequence[Candidate]
) -> list[Rewards]:
    """The client's results for these candidates, which all need units or all do not."""
    return await client.score(
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
