"""Callers of the soak, whose number rises and falls, and what they saw.

They speak HTTP themselves, so that they see every status. A request that is refused for now is sent
again after the pause that the refusal names, and one whose connection broke after half a second, as
the client does. They know nothing of replicas.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
import msgspec
import numpy as np

from fakes.versions import Answer, Truths
from soak import kinds
from tokenreward.wire import decode_rewards
from tokenreward.wire.reply import Reply, ScorerResult
from tokenreward_client.media import content_type, read_body

PERIOD_S, HIGH_S = 180.0, 60.0  # the load is high for the first part of each period
NUM_STEADY, NUM_IN_BURST = 3, 8
PAUSE_S = 0.4  # of a steady caller, between two requests
BURST_ITEMS = 100
PATIENCE_S = 120.0
LATE = {408, 504}  # of Ray's proxy, and ours


@dataclass
class Tally:
    """What callers saw.

    Attributes:
        statuses: How many answers had each status.
        num_items: Items whose answer was right.
        num_errors: Those of them that deserved an error and had it.
        lost: Requests without an answer, and answers that no request deserves.
        wrong: Items whose answer is not that of a fresh engine of the version in the reply.
        mixed: Replies in which a scorer has two versions.
        broken: Connections that broke. What they carried is asked again.
        num_hung_up: Requests whose caller hung up.
        num_late: Requests whose deadline passed.
        versions: All versions of the weights that are pushed.
        longest_s: The longest time that a request had no answer, tries included.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    num_items: int = 0
    num_errors: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    num_hung_up: int = 0
    num_late: int = 0
    versions: set[int] = field(default_factory=set)
    longest_s: float = 0.0


class Load:
    """The callers.

    Args:
        url: The service.
        truths: By deployment, what is right.
    """

    def __init__(self, url: str, truths: Mapping[str, Truths]) -> None:
        self._truths = truths
        self._http = httpx.AsyncClient(
            base_url=url, timeout=PATIENCE_S, trust_env=False, limits=httpx.Limits()
        )
        self._began = time.monotonic()
        self.tally = Tally()

    @property
    def is_high(self) -> bool:
        return (time.monotonic() - self._began) % PERIOD_S < HIGH_S

    async def run(self, until: asyncio.Event) -> None:
        """Calls until the event is set, and until what was asked is answered."""
        steady = (self._call_steadily(Random(seed), until) for seed in range(NUM_STEADY))
        burst = (self._call_in_bursts(Random(100 + n), until) for n in range(NUM_IN_BURST))
        try:
            await asyncio.gather(*steady, *burst)
        finally:
            await self._http.aclose()

    async def text(self, path: str) -> str:
        """What the service says there."""
        return (await self._http.get(path)).text

    async def _call_steadily(self, random: Random, until: asyncio.Event) -> None:
        """Requests of all kinds, now and then."""
        while not until.is_set():
            kind = random.random()
            if kind < 0.1:
                await self._be_refused(*random.choice(kinds.REFUSED))
            elif kind < 0.2:
                await self._hang_up(random)
            elif kind < 0.3:
                await self._ask(random, deadline_s=random.choice([0.001, 0.05, 0.2]))
            else:
                await self._ask(random)
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))

    async def _call_in_bursts(self, random: Random, until: asyncio.Event) -> None:
        """Large requests, one after the other, while the load is high."""
        while not until.is_set():
            if self.is_high:
                await self._ask(random, scorers=["logprob"], num_items=BURST_ITEMS)
            else:
                await asyncio.sleep(0.5)

    async def _hang_up(self, random: Random) -> None:
        try:
            async with asyncio.timeout(random.uniform(0, 0.3)):
                await self._ask(random)
        except TimeoutError:
            self.tally.num_hung_up += 1

    async def _be_refused(self, body: bytes, status: int, code: str) -> None:
        answer = await self._http.post("/v1/rewards", content=body, headers=_headers("json"))
        self.tally.statuses[str(answer.status_code)] += 1
        if answer.status_code != status or answer.json()["error"]["code"] != code:
            self.tally.lost.append(f"not refused as {code}: {answer.status_code} {answer.text}")

    async def _ask(
        self,
        random: Random,
        *,
        scorers: list[str] | None = None,
        num_items: int | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """One request, until it is answered, and its judgement."""
        names = scorers or random.choice(kinds.SETS)
        places = random.choices(range(len(kinds.ITEMS)), k=num_items or random.choice(kinds.SIZES))
        wire, body = random.choice(["json", "msgpack"]), kinds.body(names, places)
        encode = msgspec.json.encode if wire == "json" else msgspec.msgpack.encode
        headers, path = _headers(wire), kinds.route(names, random)
        if deadline_s is not None:
            headers["x-request-timeout-seconds"] = str(deadline_s)
        began = time.monotonic()
        answer = await self._post(path, encode(body), headers)
        self.tally.longest_s = max(self.tally.longest_s, time.monotonic() - began)
        if isinstance(answer, str):
            self.tally.lost.append(f"{path} {names}: {answer}")
        elif deadline_s is not None and answer.status_code in LATE:
            self.tally.num_late += 1
        elif answer.status_code != 200:
            self.tally.lost.append(f"{path} {names}: {answer.status_code} {answer.text[:300]}")
        else:
            self._judge(names, places, read_body(answer.content, wire), deadline_s)  # type: ignore[arg-type]

    async def _post(
        self, path: str, content: bytes, headers: dict[str, str]
    ) -> httpx.Response | str:
        """The answer, or why there is none."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = await self._http.post(path, content=content, headers=headers)
            except httpx.TransportError as error:
                at = time.monotonic() - self._began
                self.tally.broken.append(f"{at:.0f} s, {path}: {error!r}")
                if time.monotonic() > until:
                    return repr(error)
                await asyncio.sleep(0.5)
                continue
            self.tally.statuses[str(answer.status_code)] += 1
            pause_s = float(answer.headers.get("retry-after", 1))
            if answer.status_code != 503 or time.monotonic() + pause_s > until:
                return answer
            await asyncio.sleep(pause_s)

    def _judge(
        self,
        scorers: Sequence[str],
        places: Sequence[int],
        reply: Reply,
        deadline_s: float | None,
    ) -> None:
        if len(reply.items) != len(places):
            self.tally.lost.append(f"{len(places)} items have {len(reply.items)} answers")
            return
        for scorer in scorers:
            truths, versions = self._truths[kinds.SCORERS[scorer]], set()
            for place, item in zip(places, reply.items, strict=True):
                result: Any = item if item.scorers is None else item.scorers[scorer]
                version = reply.version if item.scorers is None else result.version
                if version is not None:
                    versions.add(version)
                answer = _answer(result)
                is_late = isinstance(answer, str) and answer == "deadline_exceeded"
                if is_late and deadline_s is not None:
                    continue  # one of two deployments was late: the gateway says so of each item
                if not truths.is_right(version, scorer, place, answer):
                    self.tally.wrong.append(f"{scorer} {version} item {place}: {result}")
                    continue
                self.tally.num_items += 1
                self.tally.num_errors += place in kinds.ERRORS
            if len(versions) > 1:
                self.tally.mixed.append(f"{scorer}: {versions}")
            if kinds.SCORERS[scorer] == kinds.SFT:
                self.tally.versions |= versions


def _answer(result: ScorerResult) -> Answer:
    if result.error is not None:
        return result.error.code
    rewards = result.rewards
    if isinstance(rewards, str | bytes):
        return decode_rewards(rewards)
    return np.asarray(rewards, np.float32)


def _headers(wire: Any) -> dict[str, str]:
    return {"content-type": content_type(wire), "accept": content_type(wire)}
