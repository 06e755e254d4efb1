"""The two ways to write a request: JSON, or msgpack with its vectors as bytes. The same numbers
travel on both.

It knows the shape of a request and a reply, and nothing of HTTP. msgspec is imported where msgpack
is written or read, so that JSON does without it.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def content_type(wire: WireName) -> str:
    """The media type of a body."""
    return JSON_TYPE if wire == "json" else MSGPACK_TYPE


def ids_field(ids: IntArray, wire: WireName) -> Any:
    """Token ids [n] as a field of an item: base64 in JSON."""
    return encode_ids(ids) if wire == "json" else ids


def vector_field(name: str, value: Any, wire: WireName) -> Any:
    """The value of a field with one entry per unit, in a form that the strict models of the wire
    take.

    Args:
        name: The field's name.
        value: What the caller gave for it. The models say what is wrong with that.
        wire: How the item will be written.
    """
    array = _lossless_array(name, value) if wire == "msgpack" else None
    return _as_lists(value) if array is None else array


def write_item(item: Item, wire: WireName) -> bytes:
    """The bytes of an item. Raises ValueError for what cannot be written."""
    if wire == "json":
        return item.model_dump_json(exclude_unset=True).encode()
    vectors = {}
    for name in item.model_fields_set:
        value = getattr(item, name)
        if isinstance(value, np.ndarray):
            vectors[name] = value
    # What is plain in JSON is plain here: the service takes no msgpack extensions.
    rest = item.model_dump(mode="json", exclude_unset=True, exclude=set(vectors))
    return _pack({**rest, **vectors})


def write_body(head: bytes, items: Sequence[bytes], wire: WireName) -> bytes:
    """The bytes of a request. Raises ValueError if its head cannot be written.

    Args:
        head: All of the request but its items, as JSON.
        items: What `write_item` gave for each item. Items are large, and encoded when the call
            begins: they are joined as bytes.
        wire: How they are written.
    """
    if wire == "json":
        # In the place of the brace that ends the head.
        return head[:-1] + b',"items":[' + b",".join(items) + b"]}"
    from tokenreward.wire.msgpack import Packed

    return _pack({**from_json(head), "items": [Packed(item) for item in items]})


def read_body(content: bytes, wire: WireName) -> Reply:
    """The reply in the body of a 200. Raises BadReply."""
    try:
        if wire == "json":
            return parse_reply(content)
        from tokenreward.wire.msgpack import unpack

        return read_reply(unpack(content))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
    except ValueError as error:
        reason = str(error)
    raise BadReply(f"the reply is not a rewards reply: {reason}")


def check_wire(wire: WireName) -> None:
    """Raises BadArgument if there is no such wire, or its library is missing."""
    if wire not in ("json", "msgpack"):
        raise BadArgument(f'must be "json" or "msgpack", got {wire!r}', param="wire")
    if wire == "msgpack" and find_spec("msgspec") is None:
        raise BadArgument(
            '"msgpack" needs msgspec: pip install "tokenreward[msgpack]"', param="wire"
        )


def _pack(content: object) -> bytes:
    from tokenreward.wire.msgpack import pack

    try:
        return pack(content)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from None


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
