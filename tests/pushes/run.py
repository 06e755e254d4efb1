"""Callers in a closed loop, pushes, kills among them; and what came of it.

Pushes come one after the other, and some of them two at the same moment, on connections of their
own: the same push twice, or two versions, of which the greater one must be served.

Two checkpoints take turns: odd versions are the first, even ones the second. So the rewards of
every version are known beforehand, from engines of their own.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse
from tokenreward_client import AsyncClient, ClientError, ServerRefused

TOLERANCE = 1e-5  # times the largest reward; the two checkpoints differ by far more
NUM_CALLERS = 6
CATCH_UP_S = 120.0

Vector = npt.NDArray[np.float32]
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


async def truths(settings: dict[str, Any], checkpoints: Sequence[str]) -> list[list[Vector]]:
    """The rewards of all items by an engine of each checkpoint, alone."""
    rewards = []
    for checkpoint in checkpoints:
        parsed = DeploymentSettings.model_validate({**settings, "checkpoint": checkpoint})
        engine = await asyncio.to_thread(Engine.load, parsed)
        scorer = parsed.scorers[0].served_name
        reply = await engine.score(parse(RewardsRequest, {"scorer": scorer, "items": ITEMS}))
        rewards.append([np.asarray(item.rewards) for item in reply.items])
        await engine.close()
    return rewards


async def run(
    url: str,
    settings: dict[str, Any],
    checkpoints: Sequence[str],
    *,
    admin_key: str,
    num_pushes: int,
    kill: Callable[[], None],
    kill_every: int,
    together: float = 0.0,
    seed: int = 0,
) -> Outcome:
    """Pushes under load.

    Args:
        url: The service, which serves the first of the checkpoints under an odd version.
        settings: The deployment's settings.
        checkpoints: Two.
        admin_key: Opens the route.
        num_pushes: How often it pushes.
        kill: Ends a replica.
        kill_every: How many pushes are between two kills.
        together: The share of the pushes that have company.
        seed: Of which pushes are sent together.
    """
    truth = await truths(settings, checkpoints)
    gaps = [np.abs(a - b).max() for a, b in zip(*truth, strict=True)]
    assert min(gaps) > 100 * _tolerance(truth), f"the two checkpoints differ by {gaps} only"
    outcome, is_done, chance = Outcome(), asyncio.Event(), random.Random(seed)
    name, scorer = settings["name"], settings["scorers"][0]["type"]
    async with AsyncClient(url, timeout_s=300, max_concurrency=NUM_CALLERS + 1) as client:
        callers = [
            asyncio.ensure_future(_call(client, scorer, outcome, truth, until=is_done))
            for _ in range(NUM_CALLERS)
        ]
        first = (await client.weights(name, admin_key)).replicas[0].version or 0
        version = first

        async def push(version: int, client: AsyncClient = client) -> Any:
            return await client.update_weights(
                name,
                checkpoint=checkpoints[(version + 1) % 2],
                version=version,
                admin_key=admin_key,
            )

        async def push_beside(version: int) -> None:
            """Another push at the same moment, on a connection of its own."""
            outcome.num_together += 1
            try:
                async with AsyncClient(url, timeout_s=300) as other:
                    await push(version, other)
            except ServerRefused as error:
                if error.code != "version_conflict":
                    raise
                outcome.num_refused += 1

        try:
            for number in range(1, num_pushes + 1):
                began, version = time.monotonic(), version + 1
                if chance.random() < together:
                    lower, version = version, version + chance.randrange(2)
                    reply, _ = await asyncio.gather(push(version), push_beside(lower))
                else:
                    reply = await push(version)
                outcome.push_s.append(time.monotonic() - began)
                outcome.missed += any(each.version != version for each in reply.replicas)
                if number % kill_every == kill_every // 2:
                    outcome.num_kills += 1
                    kill()
            outcome.final = await _final(client, name, admin_key, version)
            outcome.gateways = await _gateways(url)
        finally:
            is_done.set()
            await asyncio.gather(*callers)
    return outcome


async def _call(
    client: AsyncClient,
    scorer: str,
    outcome: Outcome,
    truth: Sequence[Sequence[Vector]],
    *,
    until: asyncio.Event,
) -> None:
    """One caller, who asks again and again."""
    while not until.is_set():
        began = time.monotonic()
        try:
            answers = await client.score(ITEMS, scorer, timeout_s=120)
        except ClientError as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")
            continue
        outcome.latencies_s.append(time.monotonic() - began)
        _judge(outcome, answers, truth)


def _judge(outcome: Outcome, answers: Sequence[Any], truth: Sequence[Sequence[Vector]]) -> None:
    """Notes what is wrong with a reply."""
    outcome.num_replies += 1
    versions = {answer.version for answer in answers}
    outcome.versions |= versions
    if len(versions) > 1:
        outcome.mixed.append(versions)
    for answer, *expected in zip(answers, *truth, strict=True):
        gap = np.abs(answer.rewards - expected[(answer.version + 1) % 2]).max()
        if gap > _tolerance(truth):
            outcome.wrong.append(answer.version)


def _tolerance(truth: Sequence[Sequence[Vector]]) -> float:
    largest = max(np.abs(vector).max() for vectors in truth for vector in vectors)
    return TOLERANCE * max(1.0, float(largest))


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
    pattern = r'tokenreward_requests_total\{deployment="gateway",replica="(\S+?)",\S+\} (\S+)'
    counts: dict[str, int] = {}
    for replica, number in re.findall(pattern, text):
        counts[replica] = counts.get(replica, 0) + int(float(number))
    return sorted(counts.values())
