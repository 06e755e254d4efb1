"""The two media that a body may be written in, and which of them a request and its answer are in.

It knows headers and bytes, and nothing of what the bodies say. This module needs orjson and
msgspec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel
from pydantic_core import from_json

from tokenreward.errors import MalformedBody, quotable
from tokenreward.wire.encoding import JSON_TYPE, MSGPACK_TYPE
from tokenreward.wire.limits import refuse_large_foreign_json, refuse_large_json
from tokenreward.wire.msgpack import pack, parse_msgpack, refuse_large_msgpack, unpack
from tokenreward.wire.parsing import parse_json
from tokenreward.wire.request import RewardsRequest

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """One way to write a body: its content type, and the functions that read and write it.

    Attributes:
        name: The content type.
        parse: A request from bytes. Raises MalformedJson, MalformedBody, BodyTooLarge,
            UnknownField, InvalidField.
        refuse_large: Raises BodyTooLarge if the request holds too much; MalformedBody,
            MalformedJson or InvalidField if counting finds that it is no request.
        load: Plain objects from bytes. Raises ValueError.
        dump: Plain objects and float32 arrays as bytes.
        dump_items: The same, of a body whose `items` may be many.
    """

    name: str
    parse: Callable[[type[ModelT], bytes], ModelT]
    refuse_large: Callable[[bytes], None]
    load: Callable[[bytes], Any]
    dump: Callable[[object], bytes]
    dump_items: Callable[[Mapping[str, Any]], bytes]


def parse_bounded_json(model: type[ModelT], body: bytes) -> ModelT:
    """A request from JSON, unless it holds too much. Raises as `Media.parse`."""
    if model is RewardsRequest:
        refuse_large_json(body)
    else:
        refuse_large_foreign_json(body)
    return parse_json(model, body)


def dump_json(content: object) -> bytes:
    """Plain objects and arrays as JSON."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def dump_json_items(content: Mapping[str, Any]) -> bytes:
    """The same, of a body whose `items` may be many."""
    # A call of orjson keeps all other threads waiting until it returns: one call an item.
    items = [orjson.Fragment(dump_json(item)) for item in content["items"]]
    return dump_json({**content, "items": items})


JSON = Media(
    name=JSON_TYPE,
    parse=parse_bounded_json,
    refuse_large=refuse_large_json,
    load=from_json,
    dump=dump_json,
    dump_items=dump_json_items,
)
MSGPACK = Media(
    name=MSGPACK_TYPE,
    parse=parse_msgpack,
    refuse_large=refuse_large_msgpack,
    load=unpack,
    dump=pack,
    dump_items=pack,
)
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
