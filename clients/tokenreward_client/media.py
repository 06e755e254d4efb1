"""The two ways to write a request: JSON, or msgpack with its vectors as bytes. The same numbers
travel on both.

It knows the shape of a request and a reply, and nothing of HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from pydantic_core import from_json

from tokenreward.wire import (
    JSON_TYPE,
    MSGPACK_TYPE,
    IntArray,
    Item,
    Reply,
    encode_ids,
    parse_reply,
    read_reply,
)
from tokenreward_client.errors import BadArgument, BadReply

WireName = Literal["json", "msgpack"]

# By field of whole numbers: kinds of arrays, types in lists, and what travels.
_NUMBERS: dict[str, tuple[str, set[type], type[np.generic]]] = {
    "spans": ("iu", {int}, np.int32),
    "mask": ("iub", {int, bool}, np.int32),
}


class Wire(ABC):
    """One way to write a request. `name`: for messages. `content_type`: of the body."""

    name: ClassVar[str]
    content_type: ClassVar[str]

    @abstractmethod
    def ids(self, ids: IntArray) -> Any:
        """Token ids as a field of an item."""

    @abstractmethod
    def vector(self, name: str, value: Any) -> Any:
        """What a caller gave for a field with one entry per unit, as the wire's strict models take
        it."""

    @abstractmethod
    def item(self, item: Item) -> bytes:
        """Raises ValueError for what cannot be written."""

    @abstractmethod
    def body(self, head: bytes, items: Sequence[bytes]) -> bytes:
        """The request. `head`: all but its items, as JSON. Raises ValueError for what cannot be
        written."""

    @abstractmethod
    def reply(self, content: bytes) -> Reply:
        """Raises BadReply."""


class JsonWire(Wire):
    """Vectors of ids and rewards travel as base64."""

    name = "JSON"
    content_type = JSON_TYPE

    def ids(self, ids: IntArray) -> Any:
        return encode_ids(ids)

    def vector(self, name: str, value: Any) -> Any:
        return as_lists(value)

    def item(self, item: Item) -> bytes:
        return item.model_dump_json(exclude_unset=True).encode()

    def body(self, head: bytes, items: Sequence[bytes]) -> bytes:
        return head[:-1] + b',"items":[' + b",".join(items) + b"]}"

    def reply(self, content: bytes) -> Reply:
        try:
            return parse_reply(content)
        except ValidationError as error:
            raise _no_reply(error.errors()[0]["msg"]) from None


JSON = JsonWire()


class MsgpackWire(Wire):
    """Vectors travel as bytes. Needs msgspec."""

    name = "msgpack"
    content_type = MSGPACK_TYPE

    def __init__(self) -> None:
        if find_spec("msgspec") is None:
            raise BadArgument(
                '`wire="msgpack"` needs msgspec: pip install "tokenreward[msgpack]"', param="wire"
            )
        from tokenreward.wire import msgpack

        self._msgpack = msgpack

    def ids(self, ids: IntArray) -> Any:
        return ids

    def vector(self, name: str, value: Any) -> Any:
        array = _lossless_array(name, value)
        return as_lists(value) if array is None else array

    def item(self, item: Item) -> bytes:
        vectors = {
            name: value
            for name in item.model_fields_set
            if isinstance(value := getattr(item, name), np.ndarray)
        }
        # What is plain in JSON is plain here: the service takes no msgpack extensions.
        rest = item.model_dump(mode="json", exclude_unset=True, exclude=set(vectors))
        return _pack(self._msgpack.pack, {**rest, **vectors})

    def body(self, head: bytes, items: Sequence[bytes]) -> bytes:
        return _pack(
            self._msgpack.pack,
            {**from_json(head), "items": [self._msgpack.Packed(item) for item in items]},
        )

    def reply(self, content: bytes) -> Reply:
        try:
            return reply_from(self._msgpack.unpack(content))
        except ValueError as error:
            raise _no_reply(str(error)) from None


def wire_for(name: WireName) -> Wire:
    """Raises BadArgument: there is none of that name, or its library is missing."""
    if name not in ("json", "msgpack"):
        raise BadArgument(f'`wire` must be "json" or "msgpack", got {name!r}', param="wire")
    return MsgpackWire() if name == "msgpack" else JSON


def reply_from(content: object) -> Reply:
    """A reply from plain objects. Raises BadReply."""
    try:
        return read_reply(content)
    except ValidationError as error:
        raise _no_reply(error.errors()[0]["msg"]) from None


def _no_reply(why: str) -> BadReply:
    return BadReply(f"the reply is not a rewards reply: {why}")


def as_lists(value: Any) -> Any:
    """Lists for arrays and tuples: JSON has nothing else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if not isinstance(value, (list, tuple)):
        return value
    return [list(entry) if isinstance(entry, tuple) else entry for entry in value]


def _lossless_array(name: str, value: Any) -> npt.NDArray[Any] | None:
    """The value as int32 or float32, if nothing of it is lost; what is wrong with it is for the
    models to say."""
    kinds, types, dtype = _NUMBERS.get(name, ("iuf", {int, float}, np.float32))
    try:
        if not isinstance(value, np.ndarray):
            value = value.tolist() if hasattr(value, "tolist") else value
            if (
                not set(map(type, chain.from_iterable(value) if name == "spans" else value))
                <= types
            ):
                return None  # numpy would take true for 1
        given = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if given.size and given.dtype.kind not in kinds:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = given.astype(dtype)
    return narrow if (narrow == given).all() else None


def _pack(pack: Callable[[object], bytes], content: object) -> bytes:
    """Raises ValueError."""
    try:
        return pack(content)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None
