"""The two ways to write a request: JSON, or msgpack with its vectors as bytes. The same numbers
travel on both.

It knows the shape of a request and a reply, and nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal

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

# For a field with one entry per unit: the kinds of arrays and the types in lists whose numbers it
# holds, and what they travel as.
_NUMBERS: dict[str, tuple[str, set[type], type[np.generic]]] = {
    "spans": ("iu", {int}, np.int32),
    "mask": ("iub", {int, bool}, np.int32),
    "policy_logprobs": ("iuf", {int, float}, np.float32),
    "ref_logprobs": ("iuf", {int, float}, np.float32),
}


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """One way to write a request and to read its reply, as the functions that do it.

    Attributes:
        name: What messages call it.
        content_type: The media type of the body.
        ids: Token ids [n] as a field of an item.
        vector: The value of a field with one entry per unit, in a form that the strict models of
            the wire take. It is given the field's name, and what the caller gave for it. The models
            say what is wrong with that.
        item: The bytes of an item. Raises ValueError for what cannot be written.
        body: The bytes of a request, from all of it but its items, as JSON, and the bytes of its
            items. Raises ValueError if the former cannot be written.
        parse_reply: The reply in the body of a 200. Raises ValueError for what is no reply.
    """

    name: str
    content_type: str
    ids: Callable[[IntArray], Any]
    vector: Callable[[str, Any], Any]
    item: Callable[[Item], bytes]
    body: Callable[[bytes, Sequence[bytes]], bytes]
    parse_reply: Callable[[bytes], Reply]

    def reply(self, content: bytes) -> Reply:
        """The reply in the body of a 200. Raises BadReply."""
        try:
            return self.parse_reply(content)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
        except ValueError as error:
            reason = str(error)
        raise BadReply(f"the reply is not a rewards reply: {reason}")


def _join_json(head: bytes, items: Sequence[bytes]) -> bytes:
    # Items are large, and encoded when the call begins: they are joined as bytes, in the place of
    # the brace that ends the head.
    return head[:-1] + b',"items":[' + b",".join(items) + b"]}"


def _msgpack_wire() -> Wire:
    """Vectors travel as bytes. msgspec is imported here, so that JSON does without it."""
    from tokenreward.wire import msgpack

    def write(content: object) -> bytes:
        try:
            return msgpack.pack(content)
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from None

    def vector(name: str, value: Any) -> Any:
        array = _lossless_array(name, value)
        return _as_lists(value) if array is None else array

    def write_item(item: Item) -> bytes:
        vectors = {}
        for name in item.model_fields_set:
            value = getattr(item, name)
            if isinstance(value, np.ndarray):
                vectors[name] = value
        # What is plain in JSON is plain here: the service takes no msgpack extensions.
        rest = item.model_dump(mode="json", exclude_unset=True, exclude=set(vectors))
        return write({**rest, **vectors})

    def write_body(head: bytes, items: Sequence[bytes]) -> bytes:
        return write({**from_json(head), "items": [msgpack.Packed(item) for item in items]})

    return Wire(
        name="msgpack",
        content_type=MSGPACK_TYPE,
        ids=lambda ids: ids,
        vector=vector,
        item=write_item,
        body=write_body,
        parse_reply=lambda content: read_reply(msgpack.unpack(content)),
    )


def _as_lists(value: Any) -> Any:
    """Lists for arrays and tuples: JSON has nothing else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if not isinstance(value, (list, tuple)):
        return value
    return [list(entry) if isinstance(entry, tuple) else entry for entry in value]


def _lossless_array(name: str, value: Any) -> npt.NDArray[Any] | None:
    """The value of a field as an int32 or float32 array; None if it would not be the same numbers.

    None is also the answer for what is no vector at all: as a list it is refused by the models,
    which say what is wrong with it.
    """
    kinds, types, dtype = _NUMBERS[name]
    try:
        if not isinstance(value, np.ndarray):
            value = value.tolist() if hasattr(value, "tolist") else value
            entries = chain.from_iterable(value) if name == "spans" else value
            if not set(map(type, entries)) <= types:
                return None  # numpy would take true for 1
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if array.size and array.dtype.kind not in kinds:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(dtype)
    return narrow if (narrow == array).all() else None


# Vectors of ids and rewards travel as base64.
JSON = Wire(
    name="JSON",
    content_type=JSON_TYPE,
    ids=encode_ids,
    vector=lambda name, value: _as_lists(value),
    item=lambda item: item.model_dump_json(exclude_unset=True).encode(),
    body=_join_json,
    parse_reply=parse_reply,
)


def wire_for(name: WireName) -> Wire:
    """The wire of this name. Raises BadArgument if there is none, or its library is missing."""
    if name == "json":
        return JSON
    if name != "msgpack":
        raise BadArgument(f'must be "json" or "msgpack", got {name!r}', param="wire")
    if find_spec("msgspec") is None:
        raise BadArgument(
            '"msgpack" needs msgspec: pip install "tokenreward[msgpack]"', param="wire"
        )
    return _msgpack_wire()
