"""Callers in a closed loop, pushes, kills among them; and what came of it.

Pushes come one after the other, and some of them two at the same moment, on connections of their
own: the same push twice, or two versions, of which the greater one must be served.

Two checkpoints take turns: odd versions are the first, even ones the second. So the rewards of
every version are known beforehand (`fakes.versions`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from fakes.readings import readings
from fakes.versions import Truths
from tokenreward.wire.weights import PushReply
from tokenreward_client import AsyncClient, ClientError, ServerRefused

NUM_CALLERS = 6
CATCH_UP_S = 120.0

ITEMS: list[dict[str, Any]] = [
    {
        "prompt": f"Question {number}: who is the manager of the team, and since when?",
        "response": "The manager is Helga Wold. " * (1 + number % 5),
    }
    for number in range(16)
]


@dataclass
class Outcome:
    """What happened.

    Attributes:
        num_replies: Replies that callers got.
        failures: What was raised to callers in place of rewards.
        mixed: Versions of replies that have more than one.
        wrong: Versions of replies whose rewards are not those of a fresh engine.
        versions: All versions that replies had.
        push_s: Seconds of each push.
        latencies_s: Seconds of each call.
        missed: Pushes whose reply named a replica that had not changed.
        num_together: Pushes that were sent at the moment of another one.
        num_refused: Those of them that were refused, since the other's version is greater.
        gateways: How many requests each replica of the gateway answered.
        final: The version of each replica at the end.
    """

    num_replies: int = 0
    failures: list[str] = field(default_factory=list)
    mixed: list[set[int]] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    push_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    missed: int = 0
    num_together: int = 0
    num_refused: int = 0
    gateways: list[int] = field(default_factory=list)
    num_kills: int = 0
    final: list[int | None] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The figures, for people."""
        pushes, calls = np.array(self.push_s), np.array(self.latencies_s)
        return [
            f"{len(pushes)} pushes, {self.num_kills} kills, {self.num_replies} replies of "
            f"{len(ITEMS)} items, of {len(self.versions)} versions",
            f"{len(self.failures)} failed, {len(self.mixed)} mixed, {len(self.wrong)} wrong",
            f"push: median {np.median(pushes):.2f} s, longest {pushes.max():.2f} s; "
            f"{self.missed} were missed by a replica at first",
            f"{self.num_together} were sent at the moment of another one; {self.num_refused} of "
            "them were refused, as the other version was greater",
            f"requests by gateway: {self.gateways}",
            f"call: median {np.median(calls):.3f} s, 99 % {np.quantile(calls, 0.99):.3f} s, "
            f"longest {calls.max():.2f} s",
            f"replicas at the end: versions {self.final}",
        ]


class Pushes:
    """Pushes to one deployment under load.

    Args:
        url: The service, which serves the first of the checkpoints under an odd version.
        settings: The deployment's settings.
        checkpoints: Two.
        admin_key: Opens the route.
        together: The share of the pushes that have company.
        seed: Of which pushes are sent together.

    Attributes:
        outcome: What happened.
    """

    def __init__(
        self,
        url: str,
        settings: dict[str, Any],
        checkpoints: Sequence[str],
        *,
        admin_key: str,
        together: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.outcome = Outcome()
        self._url = url
        self._settings = settings
        self._name, self._scorer = settings["name"], settings["scorers"][0]["type"]
        self._checkpoints = checkpoints
        self._admin_key = admin_key
        self._together = together
        self._random = random.Random(seed)

    async def run(self, num_pushes: int, *, kill: Callable[[], None], kill_every: int) -> None:
        """Pushes while callers ask.

        Args:
            num_pushes: How often it pushes.
            kill: Ends a replica.
            kill_every: How many pushes are between two kills.
        """
        truths = await Truths.computed(self._settings, self._checkpoints, ITEMS)
        outcome, is_done = self.outcome, asyncio.Event()
        async with AsyncClient(self._url, timeout_s=300, max_concurrency=NUM_CALLERS + 1) as client:
            calls = (self._call(client, truths, until=is_done) for _ in range(NUM_CALLERS))
            callers = asyncio.gather(*calls)
            try:
                status = await client.weights(self._name, self._admin_key)
                version = status.replicas[0].version or 0
                for number in range(1, num_pushes + 1):
                    version = await self._push_next(client, version)
                    if number % kill_every == kill_every // 2:
                        outcome.num_kills += 1
                        kill()
                outcome.final = await _final(client, self._name, self._admin_key, version)
                outcome.gateways = await _gateways(self._url)
            finally:
                is_done.set()
                await callers

    async def _push_next(self, client: AsyncClient, version: int) -> int:
        """Pushes once, or twice at the same moment. Returns the version that must serve then."""
        began, version = time.monotonic(), version + 1
        if self._random.random() < self._together:
            lower, version = version, version + self._random.randrange(2)
            reply, _ = await asyncio.gather(
                self._push(client, version), self._push_beside(version=lower)
            )
        else:
            reply = await self._push(client, version)
        self.outcome.push_s.append(time.monotonic() - began)
        self.outcome.missed += any(each.version != version for each in reply.replicas)
        return version

    async def _push(self, client: AsyncClient, version: int) -> PushReply:
        return await client.update_weights(
            self._name,
            checkpoint=self._checkpoints[(version + 1) % 2],
            version=version,
            admin_key=self._admin_key,
        )

    async def _push_beside(self, version: int) -> None:
        """Another push at the same moment, on a connection of its own."""
        self.outcome.num_together += 1
        try:
            async with AsyncClient(self._url, timeout_s=300) as client:
                await self._push(client, version)
        except ServerRefused as error:
            if error.code != "version_conflict":
                raise
            self.outcome.num_refused += 1

    async def _call(self, client: AsyncClient, truths: Truths, *, until: asyncio.Event) -> None:
        """One caller, who asks again and again."""
        while not until.is_set():
            began = time.monotonic()
            try:
                answers = await client.score(ITEMS, self._scorer, timeout_s=120)
            except ClientError as error:
                self.outcome.failures.append(f"{type(error).__name__}: {error}")
                continue
            self.outcome.latencies_s.append(time.monotonic() - began)
            self._judge(answers, truths)

    def _judge(self, answers: Sequence[Any], truths: Truths) -> None:
        """Notes what is wrong with a reply."""
        self.outcome.num_replies += 1
        versions = {answer.version for answer in answers}
        self.outcome.versions |= versions
        if len(versions) > 1:
            self.outcome.mixed.append(versions)
        for index, answer in enumerate(answers):
            if not truths.is_right(answer.version, self._scorer, index, answer.rewards):
                self.outcome.wrong.append(answer.version)


async def _final(client: AsyncClient, name: str, key: str, version: int) -> list[int | None]:
    """What the replicas serve once all of them are there and have followed, or time is up."""
    until = time.monotonic() + CATCH_UP_S
    versions: list[int | None] = []
    while time.monotonic() < until:
        versions = [each.version for each in (await client.weights(name, key)).replicas]
        if versions == [version] * 2:
            break
        await asyncio.sleep(0.5)
    return versions


async def _gateways(url: str) -> list[int]:
    """How many requests each replica of the gateway answered."""
    async with httpx.AsyncClient(base_url=url) as client:
        text = (await client.get("/metrics")).text
    counts = Counter[str]()
    for labels, number in readings(text, "requests_total", deployment="gateway").items():
        counts[labels.split('replica="')[1].split('"')[0]] += int(number)
    return sorted(counts.values())
