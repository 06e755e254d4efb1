"""One request of an evaluation: some scorers, some candidates, and a result for each of both.

It knows the client. It does not know how many candidates belong into a request, what becomes of
those that fail, or what results are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenreward.errors import DeadlineExceededError
from tokenreward.eval.candidate import Candidate
from tokenreward.eval.rows import EvalError
from tokenreward.eval.subject import Subject
from tokenreward.wire import ErrorDetail
from tokenreward_client import AsyncClient, ClientError, Rewards, ServerRefused

_LATE = DeadlineExceededError.code


async def try_out(client: AsyncClient, subjects: Sequence[Subject], candidate: Candidate) -> None:
    """Ask for one item and drop its answer.

    A request that the service refuses as a whole is thus refused before the long run. And the extra
    seconds of a first request (connections, lazy loading) count in no latency.

    Raises:
        EvalError: The service refuses the request.
        ClientError: It cannot be reached or does not answer.
    """
    try:
        # An item that is too large or late is an error of that item, here too.
        (((_, results),), _) = await request_results(client, subjects, [candidate])
    except ServerRefused as error:
        if len(subjects) > 1:
            for subject in subjects:  # the one that is at fault is named
                await try_out(client, [subject], candidate)
        labels = ", ".join(subject.label for subject in subjects)
        raise EvalError(f"scorer `{labels}`: {error}") from None
    for subject, rewards in zip(subjects, results, strict=True):
        if candidate.needs_steps and rewards.error is None and rewards.step_scores is None:
            raise EvalError(
                f"scorer `{subject.label}` gives no score of each step: this kind of data judges "
                "scorers of type `process`"
            )


async def request_results(
    client: AsyncClient, subjects: Sequence[Subject], candidates: Sequence[Candidate]
) -> tuple[list[tuple[Candidate, list[Rewards]]], list[Candidate]]:
    """Ask in one request.

    Returns:
        Each candidate with its result per scorer, and the candidates whose deadline passed. If the
        deadline of the whole request passed, that is the result of each. The result of an item that
        is too large for any request is its refusal.

    Raises:
        ClientError: The request fails for another reason.
    """
    try:
        results = await _score(client, subjects, candidates)
    except ClientError as error:
        is_too_large = isinstance(error, ServerRefused) and error.status == 413
        if is_too_large and len(candidates) > 1:
            # The client sends what is too large in ever smaller parts: no item fits, even alone.
            refused, late = [], []
            for candidate in candidates:
                own, own_late = await request_results(client, subjects, [candidate])
                refused += own
                late += own_late
            return refused, late
        if error.code != _LATE and not is_too_large:
            raise
        detail = ErrorDetail(code=error.code or "failed", message=str(error.args[0]))
        results = [[Rewards(None, error=detail)] * len(subjects)] * len(candidates)
    late = []
    for candidate, each in zip(candidates, results, strict=True):
        if any(rewards.error is not None and rewards.error.code == _LATE for rewards in each):
            late.append(candidate)
    return list(zip(candidates, results, strict=True)), late


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
    names = [subject.info.name for subject in subjects]
    if len(set(names)) < len(names):
        # A scorer is there under several options: each gets a label of the request's own.
        names = [f"{place}={name}" for place, name in enumerate(names)]
    several = await client.score(
        items,
        scorers=names,
        options=dict(zip(names, (subject.options for subject in subjects), strict=True)),
        credit=dict(zip(names, (subject.credit for subject in subjects), strict=True)),
        return_tokens=return_tokens,
        on_error="return",
    )
    results = []
    for rewards in several:
        by_name = rewards.scorers or {}
        # The tokens stand beside the scorers, and an error of the item is the error of each.
        own = [by_name.get(name, rewards) for name in names]
        results.append([replace(each, tokens=rewards.tokens) for each in own])
    return results
