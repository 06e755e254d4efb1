"""Other programs' ways of asking for rewards over HTTP, and our own: one file here is one protocol.

    body -> read -> RewardsRequest -> the engine, or deployments -> Reply -> write -> body

Every module of this folder is mounted, on each replica and on the gateway alike. A protocol knows
bodies, and nothing of engines, deployments or routing.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from tokenreward.errors import RequestError
from tokenreward.wire import Reply, RewardsRequest
from tokenreward.wire.head import RequestHead
from tokenreward.wire.media import JSON, Media


class Protocol(ABC):
    """One way of asking for rewards. An instance handles one request.

    Class attributes:
        path: The route, which takes POST.

    Args:
        headers: The request's, by lower-case name.

    Attributes:
        reads: The media of the request. MalformedBody may be raised where it is looked at.
        writes: The media of answers and of errors.
    """

    path: ClassVar[str]

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers

    @property
    def reads(self) -> Media:
        return JSON

    @property
    def writes(self) -> Media:
        return JSON

    def head(self, body: bytes) -> RequestHead | None:
        """The scorers that a body is for, if deployments read such bodies and answer callers as
        they are; None if the gateway has to read the body and write the answer."""
        return None

    @abstractmethod
    def read(self, body: bytes, scorers: Mapping[str, str]) -> RewardsRequest | None:
        """What the caller wants.

        Args:
            body: The request's body.
            scorers: The type of each scorer that is served, by name.

        Returns:
            The request; None if it has no items, and `write` gets a reply without any.

        Raises:
            RequestError: The body is wrong.
        """

    @abstractmethod
    def write(self, reply: Reply) -> bytes:
        """The body of the answer.

        Raises:
            RequestError: Callers of this protocol cannot be told of an error that the reply has.
        """

    @abstractmethod
    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        """Status and body of a failure. It may be called without `read`."""


def find_protocols() -> dict[str, type[Protocol]]:
    """The protocols in this folder by their paths."""
    protocols: dict[str, type[Protocol]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, Protocol)):
                continue
            if value.__module__ == module.__name__:
                protocols[value.path] = value
    return protocols
