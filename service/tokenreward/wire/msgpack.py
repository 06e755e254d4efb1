"""The same shapes as msgpack, where vectors of numbers may be `bin`: little-endian int32 for ids,
`spans` (start, end, start, end, ...) and `mask`, little-endian float32 for log-probs and rewards.

A body becomes plain objects and then the models that JSON becomes, so it is refused for the same
reasons. It takes no extension types. This module needs msgspec; the rest of the package does
without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np
from pydantic import BaseModel

from tokenreward.errors import InvalidField, MalformedBody
from tokenreward.wire.parsing import parse, path
from tokenreward.wire.plain import refuse_much_plain

_INT32: np.dtype[Any] = np.dtype("<i4")
_FLOAT32: np.dtype[Any] = np.dtype("<f4")
_WORDS = {_INT32: "int32", _FLOAT32: "float32"}
_VECTORS = dict.fromkeys(("prompt", "response", "spans", "mask"), _INT32)
_VECTORS |= dict.fromkeys(("policy_logprobs", "ref_logprobs"), _FLOAT32)
_PLAIN = frozenset({str, int, float, bool, type(None)})
_MOST_DEPTH = 200  # as deep as a JSON body may nest
_LONGEST_PATH = 200

Path = tuple[int | str, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


Packed = msgspec.Raw  # marks bytes that are msgpack already


def pack(content: object) -> bytes:
    """Plain objects as msgpack; numpy arrays of float32 or int32 as `bin`, other arrays as arrays
    of numbers.

    Raises TypeError, ValueError or OverflowError for what msgpack cannot hold.
    """
    return msgspec.msgpack.encode(content, enc_hook=_packable)


def _packable(value: object) -> object:
    if isinstance(value, np.ndarray):
        dtype = value.dtype
        if dtype is _FLOAT32 or dtype is _INT32:
            return value.tobytes()
        little_endian = dtype.newbyteorder("<")
        return value.astype(little_endian).tobytes() if little_endian in _WORDS else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a body")


def unpack(body: bytes) -> Any:
    """Plain objects, in which `bin` is bytes. Raises ValueError, which does not quote the body."""
    return _decoded(_DECODER.decode, body)


def _decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode(body)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    except UnicodeDecodeError:
        raise ValueError("it has a string that is not UTF-8") from None
    except TypeError:  # of msgspec before 0.21
        raise ValueError("it has a map whose key is a map") from None
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None


def _refuse_extension(code: int, data: memoryview) -> Any:
    raise ValueError("it has an extension type")


_DECODER = msgspec.msgpack.Decoder(ext_hook=_refuse_extension)


def parse_msgpack(model: type[ModelT], body: bytes) -> ModelT:
    """A request from the bytes of a msgpack body. Raises MalformedBody, BodyTooLarge, UnknownField,
    InvalidField."""
    try:
        _decoded(refuse_much_plain, body)
        content = unpack(body)
    except ValueError as error:
        raise MalformedBody(f"the body is not valid msgpack: {error}") from None
    if type(content) is not dict:
        raise MalformedBody(f"the body must be a map, got {type(content).__name__}")
    return parse(model, with_arrays(content))


def with_arrays(content: Mapping[Any, Any]) -> dict[str, Any]:
    """A request's plain objects, with arrays for the `bin` of its items, which are changed in
    place.

    Raises MalformedBody or InvalidField: they hold what JSON could not, or `bin` elsewhere.
    """
    items = content.get("items")
    _check({key: value for key, value in content.items() if key != "items"}, ())
    if type(items) is not list:
        _check(items, ("items",))
        return dict(content)
    for index, item in enumerate(items):
        where = ("items", index)
        if type(item) is not dict:
            _check(item, where)
            continue
        for key, value in item.items():
            item[key] = _field(key, value, where)
    return dict(content)


def _field(key: object, value: object, where: Path) -> object:
    dtype = _VECTORS.get(key) if isinstance(key, str) else None
    if dtype is not None and type(value) is bytes:
        assert isinstance(key, str)
        return _array(key, value, dtype, (*where, key))
    is_ids = type(value) is list and bool(value) and type(value[0]) is int
    if dtype is None or (key == "prompt" and not is_ids):
        _check({key: value}, where)
    return value  # a vector's strict model takes nothing but numbers


def _array(
    key: str, value: bytes, dtype: np.dtype[Any], where: Path
) -> np.ndarray[Any, np.dtype[Any]]:
    width = dtype.itemsize * (2 if key == "spans" else 1)
    if len(value) % width:
        param, pairs = path(where), "pairs of " if key == "spans" else ""
        raise InvalidField(
            f"{len(value)} bytes are no {pairs}little-endian {_WORDS[dtype]}",
            param=param,
        )
    array = np.frombuffer(value, dtype=dtype)
    return array.reshape(-1, 2) if key == "spans" else array


def _check(value: object, where: Path) -> None:
    """Raises MalformedBody or InvalidField for what is not JSON's."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if len(where) > _MOST_DEPTH:
        raise MalformedBody(f"the body nests deeper than {_MOST_DEPTH} levels")
    if isinstance(value, dict):
        for key, entry in value.items():
            if type(key) is not str:
                raise MalformedBody(f"the keys of a map must be strings, got {type(key).__name__}")
            _check(entry, (*where, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check(entry, (*where, index))
    elif isinstance(value, bytes):
        param = path(where)[:_LONGEST_PATH]
        raise InvalidField(f"this field takes no binary data, got {len(value)} bytes", param=param)
    else:
        raise MalformedBody("the body has an extension type")
