"""Requests to a service whose cable is pulled, run in a network namespace of its own.

    python cable_run.py

The service is in another namespace, and a switch is between the two. Prints one JSON object: by the
name of a request, what became of it and after how many seconds. It judges nothing.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fakes import web
from fakes.edge import Edge
from tokenreward_client import AsyncClient, Client, ClientError

HERE, THERE, PORT = "10.99.0.1", "10.99.0.2", 8000
HONEST_S = 9.0  # longer than a connection may go unacknowledged
TIMEOUT_S = 40.0
ITEM = {"prompt": "p", "response": "r7", "spans": [[0, 2]]}


def service() -> Starlette:
    """Answers items whose prompt is a number after so many seconds."""
    edge = Edge()

    async def post(request: Request) -> Response:
        body = json.loads(await request.body())
        prompt = body["items"][0]["prompt"]
        await asyncio.sleep(0 if prompt == "p" else float(prompt))
        return edge.ok(body)

    return Starlette(routes=[Route("/v1/rewards", post, methods=["POST"])])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def main() -> None:
    with subprocess.Popen(["unshare", "--net", sys.executable, __file__, "serve"]) as there:
        try:
            print(json.dumps(pull(there.pid)))
        finally:
            there.kill()


def pull(pid: int) -> dict[str, Any]:
    # Before the process has a namespace of its own, both ends of the cable would be in ours.
    own = Path("/proc/self/ns/net").stat().st_ino
    while Path(f"/proc/{pid}/ns/net").stat().st_ino == own:
        time.sleep(0.05)
    ip("link", "add", "cable", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    # The other pair keeps the switch up. Else our own side would know that nobody is there.
    ip("link", "add", "other", "type", "veth", "peer", "name", "end")
    ip("link", "add", "switch", "address", "02:00:00:00:00:01", "type", "bridge")
    for port in ("cable", "other"):
        ip("link", "set", port, "master", "switch")
    ip("addr", "add", f"{HERE}/24", "dev", "switch")
    for card in ("switch", "cable", "other", "end"):
        ip("link", "set", card, "up")
    url = f"http://{THERE}:{PORT}"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            httpx.get(url, timeout=1)
            break
        except httpx.HTTPError:
            time.sleep(0.2)
    with web.serving(service()) as near, ThreadPoolExecutor() as pool:
        idle = Client(url, max_retries=0, timeout_s=TIMEOUT_S)
        idle.score([ITEM])
        slow = {**ITEM, "prompt": str(2 * TIMEOUT_S)}
        honest = {**ITEM, "prompt": str(HONEST_S)}
        waiting = pool.submit(outcome, lambda: Client(url, **SETTINGS).score([slow]))
        awaited = pool.submit(outcome, lambda: asyncio.run(ask(url, slow)))
        long = pool.submit(outcome, lambda: Client(near).score([honest]))
        time.sleep(1)
        ip("link", "set", "cable", "down")
        sent = pool.submit(outcome, lambda: idle.score([ITEM]))
        unconnected = pool.submit(outcome, lambda: Client(url, **SETTINGS).score([ITEM]))
        names = {"waiting": waiting, "awaited": awaited, "sent": sent, "unconnected": unconnected}
        return {name: each.result() for name, each in {**names, "honest": long}.items()}


SETTINGS: dict[str, Any] = {"max_retries": 0, "timeout_s": TIMEOUT_S}


async def ask(url: str, item: dict[str, Any]) -> None:
    async with AsyncClient(url, **SETTINGS) as client:
        await client.score([item])


def outcome(call: Any) -> tuple[str, float]:
    """The error's name, or "ok", and how many seconds the call took."""
    began = time.monotonic()
    try:
        call()
    except ClientError as error:
        return type(error).__name__, time.monotonic() - began
    return "ok", time.monotonic() - began


def serve() -> None:
    while True:  # until the other side has given us a card
        done = subprocess.run(["ip", "link", "show", "eth0"], capture_output=True, check=False)
        if done.returncode == 0:
            break
        time.sleep(0.1)
    ip("addr", "add", f"{THERE}/24", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    uvicorn.run(service(), host=THERE, port=PORT, log_level="warning")


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else main()
