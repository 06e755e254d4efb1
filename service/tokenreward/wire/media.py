"""The two media that a body may be written in, and which of them a request and its answer are in.

It knows headers and bytes, and nothing of what the bodies say. This module needs orjson and
msgspec; the rest of the package does without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel
from pydantic_core import from_json

from tokenreward.errors import MalformedBody, shown
from tokenreward.wire.containers import refuse_many_containers
from tokenreward.wire.encoding import JSON_TYPE, MSGPACK_TYPE
from tokenreward.wire.msgpack import pack, parse_msgpack, unpack
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
    def load(self, body: bytes) -> Any:
        """Plain objects. Raises ValueError."""

    @abstractmethod
    def dump(self, content: object) -> bytes:
        """Plain objects and float32 arrays as bytes."""


class _Json(Media):
    name = JSON_TYPE

    def parse(self, model: type[ModelT], body: bytes) -> ModelT:
        refuse_many_containers(body)
        return parse_json(model, body)

    def load(self, body: bytes) -> Any:
        return from_json(body)

    def dump(self, content: object) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class _Msgpack(Media):
    name = MSGPACK_TYPE

    def parse(self, model: type[ModelT], body: bytes) -> ModelT:
        return parse_msgpack(model, body)

    def load(self, body: bytes) -> Any:
        return unpack(body)

    def dump(self, content: object) -> bytes:
        return pack(content)


JSON, MSGPACK = _Json(), _Msgpack()
_BY_TYPE: dict[str, Media] = {media.name: media for media in (JSON, MSGPACK)}


def media_of(headers: Mapping[str, str]) -> Media:
    """What a body is written in, by the `content-type` among lower-case `headers`; JSON if there is
    none.

    Raises MalformedBody: neither of the two.
    """
    given = _bare(headers.get("content-type", ""))
    if not given:
        return JSON
    if given not in _BY_TYPE:
        raise MalformedBody(
            f"the content type must be `{JSON_TYPE}` or `{MSGPACK_TYPE}`, got `{shown(given)}`"
        )
    return _BY_TYPE[given]


def answered_in(headers: Mapping[str, str]) -> Media:
    """What the caller gets: the one that `accept` names, else what the request is written in, else
    JSON."""
    accepted = {_bare(part) for part in headers.get("accept", "").split(",")}
    named = [media for name, media in _BY_TYPE.items() if name in accepted]
    return (
        named[0] if len(named) == 1 else _BY_TYPE.get(_bare(headers.get("content-type", "")), JSON)
    )


def _bare(value: str) -> str:
    """Without parameters."""
    return value.partition(";")[0].strip().lower()
