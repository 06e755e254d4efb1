"""An application that scores nothing, behind Ray Serve's own proxy: what a request costs before
anything is ours.

It reads the body, keeps one thread busy as long as a small model would, and says for how long, as
our service does. Run it with `python -m bench.rivals.empty_app PORT`, in the environment of the
service that it is compared with.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

import numpy as np

from tokenreward.deployment.instance import set_ray_environment
from tokenreward.http.body import BodyBudget
from tokenreward.http.scope import App, IncomingRequest, Message, Receive, Scope, Send

NAME = "empty"
BUSY_S = 0.2
_BODIES = BodyBudget(2**34, max_body_bytes=2**30)
_MATRIX = np.ones((64, 64), dtype=np.float32)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers `{"timing": {"compute_s"}}` to everything, after the work if it is a POST."""
    if scope["type"] != "http":
        return
    async with _BODIES.body(scope, IncomingRequest(receive), within_s=60):
        busy_s = await asyncio.to_thread(_work) if scope["method"] == "POST" else 0.0
    body = json.dumps({"timing": {"compute_s": busy_s}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    start: Message = {"type": "http.response.start", "status": 200, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _work() -> float:
    began = time.perf_counter()
    while time.perf_counter() - began < BUSY_S:
        np.matmul(_MATRIX, _MATRIX)
    return time.perf_counter() - began


def deploy(port: int) -> None:
    """Brings up a Ray of its own with the application at `/empty`."""
    set_ray_environment()
    import ray
    from ray import serve

    @serve.deployment
    @serve.ingress()
    class Empty:
        def __serve_build_asgi_app__(self) -> App:
            from bench.rivals import (
                empty_app,  # where Ray unpickles this class it is not the main module
            )

            return empty_app.app

    how: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "object_store_memory": 2**28,
    }
    ray.init(address="local", num_cpus=2, **how)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Empty.bind(), name=NAME, route_prefix=f"/{NAME}")  # type: ignore[attr-defined]


def main(port: str) -> None:
    deploy(int(port))
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
