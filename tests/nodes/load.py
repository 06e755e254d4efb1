"""Callers that ask one after another until they are told to stop, and what they saw.

They use the project's client, and compare every reward with the one that they had from the calm
service under a version of the same checkpoint. They know nothing of nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import httpx
import numpy as np

from nodes.tries import Try, WatchedConnections
from tokenreward_client import AsyncClient, ClientError

DIRECT, FRONT = "direct", "gateway"
NUM_CALLERS = 8
# A lone text is the same number to this, however it is batched.
LARGEST_DIFFERENCE = 1e-4
TIMEOUT_S = 120.0
# One deployment answers the first; the gateway asks two for the second.
KINDS: dict[str, dict[str, Any]] = {
    DIRECT: {"scorer": "endogenous"},
    FRONT: {"scorers": ["endogenous", "reward_model"]},
}
ITEMS = [
    {
        "prompt": f"Offer number {number}. Who is the manager?",
        "response": f"It is manager {number}.",
    }
    for number in range(40)
]


@dataclass
class Sight:
    """What callers saw.

    Attributes:
        successes: By kind of request and address, when each answer came, by time.monotonic.
        longest_s: By kind, the longest that a call took.
        lost: What the client raised.
        num_wrong: Answers that differ from the calm service's.
        tries: All requests that were sent.
    """

    successes: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    longest_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    lost: list[str] = field(default_factory=list)
    num_wrong: int = 0
    tries: list[Try] = field(default_factory=list)

    def longest_gap_s(self, kind: str, since: float) -> float:
        """The longest time after `since` without an answer at one of the addresses."""
        gaps = []
        for (name, _), answers in self.successes.items():
            if name == kind:
                times = [since, *(each for each in answers if each > since), time.monotonic()]
                gaps += [after - before for before, after in itertools.pairwise(times)]
        return max(gaps)


class Callers:
    """Callers at several addresses.

    Args:
        urls: Where they ask: each address is the first of some callers, who know the others, too.
        api_key: Their key.
    """

    def __init__(self, urls: Sequence[str], api_key: str) -> None:
        orders = [[*urls[place:], *urls[:place]] for place in range(len(urls))]
        self._tries: list[Try] = []
        watched = partial(WatchedConnections, self._tries)
        with mock.patch.object(httpx, "AsyncHTTPTransport", watched):
            self._clients = [
                AsyncClient(each, api_key=api_key, timeout_s=TIMEOUT_S) for each in orders
            ]
        self._truth: dict[tuple[str, int], list[list[np.ndarray]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.sight = Sight()

    async def learn(self) -> None:
        """Asks for every item of every kind once, one by one. All replicas have one version."""
        for kind in KINDS:
            answers = [await self._ask(self._clients[0], kind, item) for item in ITEMS]
            (parity,) = {version % 2 for version, _ in answers}
            self._truth[kind, parity] = [rewards for _, rewards in answers]

    async def begin(self) -> None:
        """Lets all callers ask from now on. What was seen before is forgotten."""
        self._tries.clear()
        self.sight = Sight(tries=self._tries)
        for number in range(NUM_CALLERS):
            client = self._clients[number % len(self._clients)]
            kind = FRONT if number // len(self._clients) % 4 == 3 else DIRECT
            self._tasks.append(asyncio.create_task(self._call(client, kind, number)))

    async def end(self) -> Sight:
        """Waits until all that was asked is answered or lost, and asks no more."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        return self.sight

    async def _call(self, client: AsyncClient, kind: str, number: int) -> None:
        sight = self.sight
        for place in itertools.count(7 * number):
            index = place % len(ITEMS)
            began = time.monotonic()
            # An answer that is under way when the callers are told to end is waited for.
            ask = asyncio.ensure_future(self._ask(client, kind, ITEMS[index]))
            is_last = False
            try:
                await asyncio.shield(ask)
            except asyncio.CancelledError:
                is_last = True
                await asyncio.wait([ask])
            except ClientError:
                pass
            now = time.monotonic()
            if (error := ask.exception()) is not None:
                sight.lost.append(f"{kind}: {error}")
            else:
                sight.successes.setdefault((kind, repr(client)), []).append(now)
                version, rewards = ask.result()
                sight.num_wrong += is_other(rewards, self._truth[kind, version % 2][index])
            sight.longest_s[kind] = max(sight.longest_s[kind], now - began)
            if is_last:
                return

    async def _ask(
        self, client: AsyncClient, kind: str, item: dict[str, Any]
    ) -> tuple[int, list[np.ndarray]]:
        """The version of the language model's weights, and the rewards."""
        [answer] = await client.score([item], **KINDS[kind])
        if answer.scorers is None:
            return answer.version, [answer.rewards]
        results = [answer.scorers[name] for name in KINDS[kind]["scorers"]]
        return results[0].version, [result.rewards for result in results]


def is_other(rewards: list[np.ndarray], truth: list[np.ndarray]) -> bool:
    """Whether any number differs."""
    pairs = list(zip(rewards, truth, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return True
    return any(float(np.abs(one - other).max()) > LARGEST_DIFFERENCE for one, other in pairs)
