"""The registry of pushes as the gateway sees it: its calls, off the event loop and within a
deadline, and the turn of the one push that a deployment may have at a time.

It knows no weights and no replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from tokenreward.errors import Loading, RequestError, Updating
from tokenreward.http.gateway.registry import Registry

_RENEW_S = 5.0
_END_S = 5.0

T = TypeVar("T")

logger = logging.getLogger(__name__)


async def registered(call: Callable[..., T], *arguments: Any, within_s: float) -> T:
    """What a call of the registry returns. Raises Loading if it is not there in time."""
    try:
        async with asyncio.timeout(max(within_s, 0)):
            return await asyncio.to_thread(call, *arguments)
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
    turn = await registered(registry.take_turn, deployment, within_s=within_s)
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
            with contextlib.suppress(RequestError):
                await check()

    renewal = asyncio.ensure_future(renew_forever())
    try:
        yield check
    finally:
        renewal.cancel()
        with contextlib.suppress(RequestError):  # it expires by itself
            await registered(registry.end_turn, deployment, turn, within_s=_END_S)
