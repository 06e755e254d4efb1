"""The registry of pushes as the gateway sees it: its calls, off the event loop and within a
deadline, and the turn of the one push that a deployment may have at a time.

It knows no weights and no replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from tokenreward.errors import Loading, RequestError, Updating
from tokenreward.http.gateway.registry import Registry

_RENEW_S = 5.0
_END_S = 5.0
# Ray's store blocks its callers while the GCS is away, a minute or more. The calls have threads of
# their own, so that no large body waits for one of them to be read.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="registry")

T = TypeVar("T")

logger = logging.getLogger(__name__)


async def registered(call: Callable[..., T], *arguments: Any, within_s: float) -> T:
    """What a call of the registry returns. Raises Loading if it is not there in time; the call may
    still go on then."""
    work = asyncio.get_running_loop().run_in_executor(_THREADS, partial(call, *arguments))
    try:
        async with asyncio.timeout(max(within_s, 0)):
            return await work
    except RequestError:
        raise
    except Exception as error:
        logger.warning("the registry of pushes does not answer: %s", type(error).__name__)
        raise Loading(
            "the registry of pushes (Ray's GCS) does not answer", retry_after_s=2
        ) from None


@contextlib.asynccontextmanager
async def turn_of(
    registry: Registry, deployment: str, *, within_s: float
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Holds the turn to push to a deployment, which is renewed meanwhile.

    Yields:
        A function that raises Updating if the turn was lost.

    Raises:
        Updating: Somebody else has the turn.
        Loading: The registry does not answer.
    """
    turn = await _take_turn(registry, deployment, within_s=within_s)
    if turn is None:
        raise Updating(f"`{deployment}` is being pushed other weights", retry_after_s=1)

    async def check() -> None:
        if not await registered(registry.renew_turn, deployment, turn, within_s=_RENEW_S):
            raise Updating(
                f"somebody else began to push to `{deployment}`, as this one was stuck",
                retry_after_s=1,
            )

    async def renew_forever() -> None:
        while True:
            await asyncio.sleep(_RENEW_S)
            with contextlib.suppress(Loading):
                await check()

    renewal = asyncio.ensure_future(renew_forever())
    try:
        yield check
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)  # `check` says it, too
        await _end_turn(registry, deployment, turn)


async def _take_turn(registry: Registry, deployment: str, *, within_s: float) -> int | None:
    """The turn's number; None if somebody else has it. A turn that comes too late for its caller is
    ended, so that others need not wait until it expires. Raises Loading."""
    is_awaited, turn = True, None

    def take() -> None:
        nonlocal turn
        turn = registry.take_turn(deployment)
        if turn is not None and not is_awaited:
            registry.end_turn(deployment, turn)

    try:
        await registered(take, within_s=within_s)
    except BaseException:
        is_awaited = False
        if turn is not None:
            await _end_turn(registry, deployment, turn)
        raise
    return turn


async def _end_turn(registry: Registry, deployment: str, turn: int) -> None:
    with contextlib.suppress(RequestError):  # it expires by itself
        await registered(registry.end_turn, deployment, turn, within_s=_END_S)
