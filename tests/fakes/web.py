"""A real HTTP server on a free port around an ASGI application, for tests that need sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The URL at which `app` answers meanwhile, on a thread and a loop of its own."""
    with _listening() as (listener, url):
        server = _server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield url
        server.should_exit = True
        thread.join()


@asynccontextmanager
async def serving_here(app: Any) -> AsyncIterator[str]:
    """The same on the test's own loop, for an `app` that holds things of that loop."""
    with _listening() as (listener, url):
        server = _server(app)
        task = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)
        yield url
        server.should_exit = True
        await task


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Waits for something that another thread brings about."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _listening() -> Iterator[tuple[socket.socket, str]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def _server(app: Any) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    )
