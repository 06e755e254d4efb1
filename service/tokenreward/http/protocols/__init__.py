"""Other programs' ways of asking for rewards over HTTP, and our own: one file here is one protocol.

    body -> read -> RewardsRequest -> the engine, or deployments -> Reply -> write -> body

Every module of this folder is mounted, on each replica and on the gateway alike. A module whose
name begins with an underscore holds what several protocols share. A protocol knows bodies, and
nothing of engines, deployments or routing.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from tokenreward.errors import RequestError, UnknownScorer
from tokenreward.settings import ProtocolSettings
from tokenreward.wire import Item, Reply, RewardsRequest, refusal
from tokenreward.wire.head import RequestHead
from tokenreward.wire.media import JSON, Media
from tokenreward.wire.paths import PROTOCOL_HEADER


class Protocol(ABC):
    """One way of asking for rewards. An instance handles one request.

    Class attributes:
        name: The name of its module, which `protocols` of the settings uses.
        paths: The routes, which take POST.
        example: A body, for those who read the OpenAPI document.
        asks_for: Which scorer answers where the settings name none: the first reward model, or one
            that gives log-probabilities (see `plans`). None for a protocol whose bodies name
            scorers.
        gives_token_rewards: Whether its programs get rewards of tokens, which they add up. Settings
            under which these are levels or returns are then refused.
        patience_s: For how long a request is held while the service is overloaded or loads, before
            it is refused. It stays below the time limit of the protocol's clients. Callers that
            try a 503 again by themselves say so in a header.

    Args:
        headers: The request's, by lower-case name.

    Attributes:
        reads: The media of the request. MalformedBody may be raised where it is looked at.
        writes: The media of answers and of errors.
        path: The route that the request came by.
        plan: The scorer that answers here, with its options and credit, once the request has come
            to where it is answered. None if no scorer there does.
        answer_headers: Headers of the answer beside its content type, which `write` may set.
    """

    name: ClassVar[str]
    paths: ClassVar[tuple[str, ...]]
    example: ClassVar[str] = ""
    asks_for: ClassVar[Literal["reward", "log_probs"] | None] = "reward"
    gives_token_rewards: ClassVar[bool] = False
    patience_s: ClassVar[float] = 0.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.path = self.paths[0]
        self.plan: ProtocolSettings | None = None
        self.answer_headers: dict[str, str] = {}

    @property
    def reads(self) -> Media:
        return JSON

    @property
    def writes(self) -> Media:
        return JSON

    @property
    def marks(self) -> dict[str, str]:
        """Headers that show the gateway an answer in this form, which it sends on as it is."""
        return {} if self.asks_for is None else {PROTOCOL_HEADER: self.name}

    def head(self, body: bytes) -> RequestHead | None:
        """The scorers that a body is for, if deployments read such bodies and answer callers as
        they are; None if the gateway has to read the body and write the answer."""
        return None

    @abstractmethod
    def read(self, body: bytes) -> RewardsRequest | None:
        """What the caller wants.

        Args:
            body: The request's body.

        Returns:
            The request, which `request` makes of items; None if it has no items, and `write` gets a
            reply without any.

        Raises:
            RequestError: The body is wrong.
        """

    def parse(self, body: bytes) -> RewardsRequest | None:
        """What `read` makes of a body.

        Raises:
            RequestError: The body is wrong, also where `read` found it right, and no item can be
                made of it: of ids past 32 bits, for example.
        """
        try:
            return self.read(body)
        except ValidationError as error:
            raise refusal(error) from None

    @abstractmethod
    def write(self, reply: Reply) -> bytes:
        """The body of the answer.

        Raises:
            RequestError: Callers of this protocol cannot be told of an error that the reply has.
        """

    @abstractmethod
    def write_error(self, error: RequestError) -> tuple[int, bytes]:
        """Status and body of a failure. It may be called without `read`."""

    def request(
        self,
        items: Sequence[Item],
        *,
        options: Mapping[str, Any] | None = None,
        credit: Mapping[str, Any] | None = None,
        return_tokens: bool = False,
    ) -> RewardsRequest | None:
        """The request for these items to the scorer that answers here; None if there are none.

        Args:
            items: What is to be scored.
            options: Options that the caller's body asks for. They stand over the settings'.
            credit: The same of its credit.
            return_tokens: Whether the reply shows the tokens.

        Raises:
            UnknownScorer: No scorer here gives what the protocol asks for.
        """
        if self.plan is None:
            raise UnknownScorer(self.missing())
        if not items:
            return None
        return RewardsRequest(
            scorer=self.plan.scorer,
            items=list(items),
            options={**self.plan.options, **(options or {})},
            credit={**self.plan.credit, **(credit or {})},
            return_tokens=return_tokens,
        )

    @classmethod
    def missing(cls) -> str:
        """What is wrong where no scorer answers this protocol."""
        if cls.asks_for == "log_probs":
            return "no scorer that gives log-probabilities is served here"
        return "no scorer of type `reward_model` is served here, and `protocols` names no other"


def find_protocols() -> dict[str, type[Protocol]]:
    """The protocols in this folder by their paths."""
    protocols: dict[str, type[Protocol]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        if module_info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, Protocol)):
                continue
            if value.__module__ == module.__name__:
                protocols.update(dict.fromkeys(value.paths, value))
    return protocols
