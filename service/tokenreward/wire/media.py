"""The two media that a body may be written in, and which of them a request and its answer are in.

It knows headers and bytes, and nothing of what the bodies say. This module needs orjson and
msgspec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel
from pydantic_core import from_json

from tokenreward.errors import MalformedBody, quotable
from tokenreward.wire.encoding import JSON_TYPE, MSGPACK_TYPE
from tokenreward.wire.limits import refuse_many_containers
from tokenreward.wire.msgpack import pack, parse_msgpack, refuse_large_msgpack, unpack
from tokenreward.wire.parsing import parse_json

ModelT = TypeVar("ModelT", bound=BaseModel)


class Media(ABC):
    """One way to write a body. `name` is its content type."""

    name: ClassVar[str]

    @abstractmethod
    def parse(self, model: type[ModelT], body: bytes) -> ModelT:
        """A request. Raises MalformedJson, MalformedBody, BodyTooLarge, UnknownField,
        InvalidField."""

    @abstractmethod
    def refuse_large(self, body: bytes) -> None:
        """Raises BodyTooLarge if the body would take too much memory as objects; MalformedBody or
        InvalidField if counting finds that it is no request."""

    @abstractmethod
    def load(self, body: bytes) -> Any:
        """Plain objects. Raises ValueError."""

    @abstractmethod
    def dump(self, content: object) -> bytes:
        """Plain objects and float32 arrays as bytes."""

    def dump_items(self, content: Mapping[str, Any]) -> bytes:
        """The same, of a body whose `items` may be many."""
        return self.dump(content)


class _Json(Media):
    name = JSON_TYPE

    def parse(self, model: type[ModelT], body: bytes) -> ModelT:
        refuse_many_containers(body)
        return parse_json(model, body)

    def refuse_large(self, body: bytes) -> None:
        refuse_many_containers(body)

    def load(self, body: bytes) -> Any:
        return from_json(body)

    def dump(self, content: object) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)

    def dump_items(self, content: Mapping[str, Any]) -> bytes:
        # A call of orjson keeps all other threads waiting until it returns: one call an item.
        items = [orjson.Fragment(self.dump(item)) for item in content["items"]]
        return self.dump({**content, "items": items})


class _Msgpack(Media):
    name = MSGPACK_TYPE

    def parse(self, model: type[ModelT], body: bytes) -> ModelT:
        return parse_msgpack(model, body)

    def refuse_large(self, body: bytes) -> None:
        refuse_large_msgpack(body)

    def load(self, body: bytes) -> Any:
        return unpack(body)

    def dump(self, content: object) -> bytes:
        return pack(content)


JSON, MSGPACK = _Json(), _Msgpack()
_BY_TYPE: dict[str, Media] = {media.name: media for media in (JSON, MSGPACK)}


def media_of(headers: Mapping[str, str]) -> Media:
    """The media of a body, by the `content-type` among lower-case `headers`; JSON if there is none.

    Raises:
        MalformedBody: It is neither of the two.
    """
    name = _without_parameters(headers.get("content-type", ""))
    if not name:
        return JSON
    if name not in _BY_TYPE:
        raise MalformedBody(
            f"the content type must be `{JSON_TYPE}` or `{MSGPACK_TYPE}`, got `{quotable(name)}`"
        )
    return _BY_TYPE[name]


def answer_media(headers: Mapping[str, str]) -> Media:
    """The media of the answer: the one that `accept` names, else the request's, else JSON."""
    accepted = {_without_parameters(part) for part in headers.get("accept", "").split(",")}
    media = [_BY_TYPE[name] for name in _BY_TYPE if name in accepted]
    if len(media) == 1:
        return media[0]
    return _BY_TYPE.get(_without_parameters(headers.get("content-type", "")), JSON)


def _without_parameters(value: str) -> str:
    """A header's value up to its first `;`, in lower case."""
    return value.partition(";")[0].strip().lower()
