"""The load: a closed loop of one-item POSTs, the same for every server, in a process of its own.

Many at a time go over httpx. A lone caller is timed to fractions of a millisecond, of which httpx
takes 1 to 4 after a pause, so it is the standard library's client on one connection.

`python -m bench.driver` reads a plan from stdin and writes what came back to stdout, both JSON. It
knows no formats: bodies are bytes that somebody else made, replies are read by somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import httpx

from bench.server import environment, python

TIMEOUT_S = 900.0
HEADERS = {"content-type": "application/json"}


class Lost(RuntimeError):
    """An item came back without an answer."""


@dataclass(frozen=True)
class Load:
    """Replies in the order of the items; `seconds` from the first item's sending to the last one's
    reply."""

    seconds: float
    latencies_s: list[float]
    replies: list[str]


async def drive(url: str, bodies: Sequence[str], *, concurrency: int) -> Load:
    """Sends them in order, `concurrency` at a time. Raises Lost."""
    latencies_s, replies = [0.0] * len(bodies), [""] * len(bodies)
    todo = iter(enumerate(bodies))

    async def work(client: httpx.AsyncClient) -> None:
        for index, body in todo:
            began = time.perf_counter()
            reply = await client.post(url, content=body, headers=HEADERS)
            latencies_s[index] = time.perf_counter() - began
            if reply.status_code != 200:
                raise Lost(f"item {index}: {reply.status_code} {reply.text[:300]}")
            replies[index] = reply.text

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, trust_env=False) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(concurrency)))
        return Load(time.perf_counter() - began, latencies_s, replies)


def drive_alone(url: str, bodies: Sequence[str]) -> Load:
    """Sends them in order, each when the one before it is answered. Raises Lost."""
    where = urlsplit(url)
    latencies_s, replies = [], []
    with contextlib.closing(
        http.client.HTTPConnection(where.netloc, timeout=TIMEOUT_S)
    ) as connection:
        connection.connect()
        started = time.perf_counter()
        for index, body in enumerate(bodies):
            began = time.perf_counter()
            connection.request("POST", where.path, body, HEADERS)
            reply = connection.getresponse()
            text = reply.read().decode()
            latencies_s.append(time.perf_counter() - began)
            if reply.status != 200:
                raise Lost(f"item {index}: {reply.status} {text[:300]}")
            replies.append(text)
        return Load(time.perf_counter() - started, latencies_s, replies)


def run(url: str, bodies: Sequence[str], *, concurrency: int, cores: frozenset[int]) -> Load:
    """The same from a process of its own, on these cores. Raises Lost."""
    plan = {"url": url, "bodies": list(bodies), "concurrency": concurrency, "cores": sorted(cores)}
    how = {"input": json.dumps(plan), "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run(python("bench.driver"), **how)
    if done.returncode:
        raise Lost(
            done.stderr.strip().splitlines()[-1]
            if done.stderr.strip()
            else f"code {done.returncode}"
        )
    return Load(**json.loads(done.stdout))


def main() -> None:
    plan = json.load(sys.stdin)
    os.sched_setaffinity(0, plan["cores"])
    url, bodies, concurrency = plan["url"], plan["bodies"], plan["concurrency"]
    load = (
        drive_alone(url, bodies)
        if concurrency == 1
        else asyncio.run(drive(url, bodies, concurrency=concurrency))
    )
    json.dump(asdict(load), sys.stdout)


if __name__ == "__main__":
    main()
