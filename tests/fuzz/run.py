"""Sends mutated requests and counts the answers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psutil

from fuzz.caller import RawCaller
from fuzz.mutations import as_json, mangled, mutated, odd_headers
from fuzz.service import PREFIXES, valid_bodies

_METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"]
_OTHER_PATHS = [
    "/healthz",
    "/v1/scorers",
    "/metrics",
    "/v1/models",
    "/health",
    "/d/x",
    "/%00",
    "//",
]
_HEALTH_PAUSE_S = 0.2
_SLOW_S = 1.0


@dataclass
class FuzzReport:
    """What came of a run.

    Attributes:
        statuses: How often each status came; 0 for no answer.
        failures: The number of each request that had a 5xx other than 503 and 504, or no answer;
            the request; and the answer.
        health_s: How long each `/healthz` took.
        slow: Of each `/healthz` that took longer than a second: how long it took; how much
            processor time the process used meanwhile, which is little if others had the machine;
            and the numbers of the requests that were under way at its end.
        memory: Resident bytes of the process after each tenth of the requests.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[tuple[int, str, bytes]] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    slow: list[tuple[float, float, list[int]]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def request_of(
    number: int, seed: int, bodies: list[tuple[str, Any]]
) -> tuple[str, str, list[tuple[bytes, bytes]], bytes]:
    """Method, path, headers and body of one request. Its number and the seed decide all of it."""
    random = Random(f"{seed}:{number}")
    path, body = random.choice(bodies)
    path = random.choice(PREFIXES) + path
    headers = [(b"content-type", b"application/json")]
    if random.random() < 0.92:
        body = mutated(body, random)
    if random.random() < 0.35:
        headers = [(b"content-type", b"application/msgpack")]
        if random.random() < 0.5:
            headers.append((b"accept", b"application/msgpack"))
        try:
            content = msgspec.msgpack.encode(body)
        except (UnicodeError, OverflowError, RecursionError, ValueError):
            content = as_json(body, random)
    else:
        content = as_json(body, random)
    if random.random() < 0.1:
        content = mangled(content, random)
    method = "POST"
    if random.random() < 0.02:
        method, path = random.choice(_METHODS), random.choice([path, *_OTHER_PATHS])
    return method, path, [*headers, *odd_headers(random)], content


async def fuzz(
    url: str, num_requests: int, seed: int, *, num_callers: int = 8, first: int = 0
) -> FuzzReport:
    """Sends the requests of these numbers from several connections, and asks `/healthz` beside
    them."""
    report, bodies = FuzzReport(), valid_bodies()
    address = urlsplit(url)
    numbers = iter(range(first, first + num_requests))
    process, tenth = psutil.Process(), max(1, num_requests // 10)
    under_way: set[int] = set()

    async def call() -> None:
        caller = RawCaller(str(address.hostname), int(address.port or 0))
        for number in numbers:
            method, path, headers, content = request_of(number, seed, bodies)
            if method == "HEAD":
                method = "GET"
            under_way.add(number)
            status, answer = await caller.ask(method, path, headers, content)
            under_way.remove(number)
            report.statuses[status] += 1
            if status == 0 or (status >= 500 and status not in (503, 504)):
                text = f"{method} {path} {headers} {content[:2000]!r}"
                report.failures.append((number, text, answer[:500]))
            if (number - first) % tenth == tenth - 1:
                report.memory.append(process.memory_info().rss)
        await caller.close()

    async def watch_health() -> None:
        caller = RawCaller(str(address.hostname), int(address.port or 0))
        while not is_done.is_set():
            began, cpu_began = time.monotonic(), time.process_time()
            status, _ = await caller.ask("GET", "/healthz", [], b"")
            assert status == 200
            seconds = time.monotonic() - began
            report.health_s.append(seconds)
            if seconds > _SLOW_S:
                cpu_s = time.process_time() - cpu_began
                report.slow.append((seconds, cpu_s, sorted(under_way)))
            await asyncio.sleep(_HEALTH_PAUSE_S)
        await caller.close()

    is_done = asyncio.Event()
    health = asyncio.create_task(watch_health())
    await asyncio.gather(*(call() for _ in range(num_callers)))
    is_done.set()
    await health
    return report
