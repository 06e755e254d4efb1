"""The replicas of one deployment among themselves: where they are, and calls from one to another.

Ray's handle of a deployment sends a request to a replica of its own choice, or to all. So a replica
asks all of them for their names, and calls one of them as the actor that it is. Such a call runs in
the other process at once, beside the requests: it hands over what it brings, and returns. It also
reaches a replica that is about to stop and takes no requests any more. This module knows nothing of
what is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE

from tokenreward.deployment.gateway import call_replicas, ray_handle
from tokenreward.deployment.ray_calls import on_thread

CALL_S = 2.0  # a call is answered in some milliseconds

Method = Callable[..., Any]

# What the replica of this process answers to others at once, what it does later for them, and its
# event loop. Their calls find it here.
here: tuple[dict[str, Method], dict[str, Method], asyncio.AbstractEventLoop] | None = None


class RayPeers:
    """The replicas of a deployment, seen from one of them.

    Args:
        deployment: The deployment's name.

    Attributes:
        address: Where the others reach this replica.
        actors: By address, Ray's handles of the replicas that were called. Each holds a connection.
    """

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self.address = str(ray.get_runtime_context().get_actor_name())
        self.actors: dict[str, Any] = {}

    async def addresses(self) -> list[str]:
        """Those of the replicas that take requests, this one included unless it is about to stop.
        Empty if that cannot be known now."""
        answers = await call_replicas(ray_handle, self._deployment, "address", (), CALL_S)
        addresses = [answer for answer in answers if isinstance(answer, str)]
        if addresses:  # or handles of replicas that have gone would stay for ever
            for gone in self.actors.keys() - set(addresses):
                del self.actors[gone]
        return addresses

    async def call(self, address: str, method: str, *args: Any) -> Any:
        """Calls a method of another replica (see `answer_calls`).

        Returns:
            What it returned; None of a method that runs later.

        Raises:
            ConnectionError: The replica does not answer.
        """
        try:
            async with asyncio.timeout(CALL_S):
                if address not in self.actors:
                    self.actors[address] = await on_thread(
                        ray.get_actor, address, namespace=SERVE_NAMESPACE
                    )
                return await self.actors[address].__ray_call__.remote(call_here, method, *args)
        except (RayError, TimeoutError, ValueError) as error:  # ValueError: no actor has this name
            self.actors.pop(address, None)
            raise ConnectionError(f"{address} does not answer ({type(error).__name__})") from None


def answer_calls(*, at_once: dict[str, Method], later: dict[str, Method]) -> None:
    """From now on, calls of other replicas reach these methods.

    Args:
        at_once: Methods that any thread may call, and that do not wait.
        later: Methods that are called on the event loop that runs now. They return nothing.
    """
    global here
    here = at_once, later, asyncio.get_running_loop()


def call_here(_: object, method: str, *args: Any) -> Any:
    """What a call runs in the other process, on a thread that must not wait.

    Args:
        method: Its name.
        args: Its arguments.

    Raises:
        RuntimeError: The replica is still loading.
    """
    if here is None:
        raise RuntimeError("the replica is still loading")
    at_once, later, event_loop = here
    if method in at_once:
        return at_once[method](*args)
    event_loop.call_soon_threadsafe(later[method], *args)
    return None
