"""Asking a service for the answers that a dataset needs: in batches, several in flight, each kept
when it is there.

It knows the client and nothing of what answers are worth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenreward.eval.answer import Answer, Timing, answer_of
from tokenreward.eval.cache import Cache, key_of
from tokenreward.eval.dataset import Candidate
from tokenreward.eval.rows import EvalError
from tokenreward_client import AsyncClient, ScorerInfo, ServerRefused

BATCH_ITEMS = 64
"""Items per call of the client, which is one request unless they are very long."""

_IDENTITY = (
    "type",
    "model",
    "reference",
    "version",
    "tokenizer",
    "score",
    "options",
    "default_credit",
)
"""What an answer depends on, of a scorer's entry in `GET /v1/scorers`: where and how fast it is
served is not."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A scorer under judgement and how it is asked; `label` is its row in the table. `others`:
    scorers whose answers the front fills in for it."""

    label: str
    info: ScorerInfo
    options: Mapping[str, Any] = field(default_factory=dict)
    credit: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[ScorerInfo] = ()

    def key(self, candidate: Candidate) -> str:
        """Under which the cache keeps its answer to this candidate."""
        asked: list[Any] = [
            self.info.name,
            _identity(self.info),
            dict(self.options),
            dict(self.credit),
        ]
        asked += [[other.name, _identity(other)] for other in self.others]
        return key_of(asked, candidate.item, candidate.needs_units, candidate.needs_score)


@dataclass(frozen=True, slots=True)
class Run:
    """What asking takes. `concurrency`: requests in flight.

    `on_start` is told how many items will be asked and how many the cache had; `on_done`, after
    each request, how many were answered and how many of those with an error.
    """

    client: AsyncClient
    cache: Cache | None = None
    concurrency: int = 8
    on_start: Callable[[int, int], None] = lambda asked, cached: None
    on_done: Callable[[int, int], None] = lambda answered, failed: None


def known_subject(
    label: str,
    name: str,
    listed: Sequence[ScorerInfo],
    *,
    options: Mapping[str, Any],
    credit: Mapping[str, Any],
) -> Subject:
    """The scorer of that name. Raises EvalError if the service does not list it."""
    known = {info.name: info for info in listed}
    if name not in known:
        raise EvalError(f"the service has no scorer `{name}`; it has {', '.join(known)}")
    # A name that is not known is the service's to refuse.
    others = [known[other] for other in _asked_for(known[name], options, credit) if other in known]
    return Subject(label, known[name], options, credit, others)


def _identity(info: ScorerInfo) -> dict[str, Any]:
    listed = info.model_dump()
    return {name: listed.get(name) for name in _IDENTITY}


def _asked_for(
    info: ScorerInfo, options: Mapping[str, Any], credit: Mapping[str, Any]
) -> list[str]:
    """Names of the scorers that the front asks first: for `score`, and for the KL's reference."""
    default = ((info.model_extra or {}).get("options") or {}).get("score_from") or {}
    source, kl = options.get("score_from", default.get("default")), credit.get("kl")
    reference = kl.get("reference") if isinstance(kl, Mapping) else None
    return [name for name in (source, reference) if isinstance(name, str)]


async def try_out(run: Run, subject: Subject, candidates: Sequence[Candidate]) -> None:
    """One item, whose answer does not matter: what is refused as a whole is refused before the long
    run, and the first request's extra seconds (connections, lazy loading) are no one's latency.
    Raises EvalError, ClientError."""
    try:
        await _score(run, subject, [candidates[0]])
    except ServerRefused as error:
        raise EvalError(f"scorer `{subject.label}`: {error}") from None


async def ask(run: Run, subject: Subject, candidates: Sequence[Candidate]) -> list[Answer]:
    """One answer per candidate, in order. Equal candidates are asked once.

    Raises ClientError where a request as a whole fails for good, and EvalError if the weights
    change meanwhile; the answers until then are in the cache.
    """
    keys = [subject.key(candidate) for candidate in candidates]
    answers = run.cache.read(keys) if run.cache is not None else {}
    missing = {
        key: candidate
        for key, candidate in zip(keys, candidates, strict=True)
        if key not in answers
    }
    run.on_start(len(missing), len(answers))
    # Not a queue per worker: whoever is free takes the next batch.
    waiting, clock = _batches(missing), _Clock()

    async def work() -> None:
        for batch in waiting:
            brought = await _answered(run, subject, batch, clock)
            if run.cache is not None:
                run.cache.append(brought)
            answers.update(brought)
            run.on_done(len(brought), sum(answer.error is not None for answer in brought.values()))

    await _all_or_none([asyncio.ensure_future(work()) for _ in range(run.concurrency)])
    return [answers[key] for key in keys]


def _batches(missing: Mapping[str, Candidate]) -> Iterator[dict[str, Candidate]]:
    """In order, `BATCH_ITEMS` at a time, those that need units apart from those that do not."""
    for needs_units in (False, True):
        entries = [entry for entry in missing.items() if entry[1].needs_units == needs_units]
        for first in range(0, len(entries), BATCH_ITEMS):
            yield dict(entries[first : first + BATCH_ITEMS])


class _Clock:
    """Time between replies."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def since_last_s(self) -> float:
        """Seconds since the last call, or since it was made."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


async def _answered(
    run: Run, subject: Subject, batch: Mapping[str, Candidate], clock: _Clock
) -> dict[str, Answer]:
    candidates = list(batch.values())
    began = time.perf_counter()
    scored = await _score(run, subject, candidates)
    timing = Timing(time.perf_counter() - began, clock.since_last_s(), len(batch), run.concurrency)
    for rewards in scored:
        if (
            None not in (rewards.version, subject.info.version)
            and rewards.version != subject.info.version
        ):
            raise EvalError(
                f"scorer `{subject.info.name}` went from version {subject.info.version} to "
                f"{rewards.version} "
                "meanwhile: run again to judge the new weights"
            )
    return {
        key: answer_of(candidate, rewards, timing)
        for key, candidate, rewards in zip(batch, candidates, scored, strict=True)
    }


async def _score(run: Run, subject: Subject, candidates: Sequence[Candidate]) -> list[Any]:
    return await run.client.score(
        [candidate.item for candidate in candidates],
        subject.info.name,
        options=subject.options,
        credit=subject.credit,
        return_tokens=candidates[0].needs_units,
        on_error="return",
    )


async def _all_or_none(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all; if one raises, the others are cancelled first."""
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
