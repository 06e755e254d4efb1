"""The same shapes as msgpack, where vectors of numbers may be `bin`: little-endian int32 for ids,
`spans` (start, end, start, end, ...) and `mask`, little-endian float32 for log-probs and rewards.

A body becomes plain objects first, and then the models that JSON becomes. So it is refused for the
same reasons. It knows no extension types. This module needs msgspec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import numpy as np
from pydantic import BaseModel

from tokenreward.errors import InvalidField, MalformedBody
from tokenreward.wire.limits import MAX_OTHER_VALUES, limit_of, refuse_many_values
from tokenreward.wire.msgpack_values import num_entries, refuse_many_plain_bytes
from tokenreward.wire.parsing import parse, path

_INT32: np.dtype[Any] = np.dtype("<i4")
_FLOAT32: np.dtype[Any] = np.dtype("<f4")
_DTYPE_NAMES = {_INT32: "int32", _FLOAT32: "float32"}
_VECTORS = dict.fromkeys(("prompt", "response", "spans", "mask"), _INT32)
_VECTORS |= dict.fromkeys(("policy_logprobs", "ref_logprobs"), _FLOAT32)
_PLAIN = frozenset({str, int, float, bool, type(None)})
_MAX_DEPTH = 200  # as deep as a JSON body may nest
_MAX_PATH_CHARACTERS = 200
_NO_ITEMS = b""

Path = tuple[int | str, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)


Packed = msgspec.Raw  # marks bytes that are msgpack already


def pack(content: object) -> bytes:
    """Plain objects as msgpack; numpy arrays of float32 or int32 as `bin`, other arrays as arrays
    of numbers.

    Raises:
        TypeError, ValueError, OverflowError: msgpack cannot hold the content.
    """
    return msgspec.msgpack.encode(content, enc_hook=_plain_of)


def _plain_of(value: object) -> object:
    if isinstance(value, np.ndarray):
        dtype = value.dtype
        if dtype is _FLOAT32 or dtype is _INT32:
            return value.tobytes()
        little_endian = dtype.newbyteorder("<")
        if little_endian in _DTYPE_NAMES:
            return value.astype(little_endian).tobytes()
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a body")


def unpack(body: bytes) -> Any:
    """Plain objects, in which `bin` is bytes. Raises ValueError, which does not quote the body."""
    return _decode(_DECODER.decode, body)


def _decode(decoder: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decoder(body)
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
_FIELDS = msgspec.msgpack.Decoder(dict[Any, msgspec.Raw])
_ENTRIES = msgspec.msgpack.Decoder(list[msgspec.Raw])


def refuse_large_msgpack(body: bytes) -> None:
    """Raises BodyTooLarge if the body has too many plain bytes; MalformedBody or InvalidField if
    counting finds that it is no request."""
    try:
        _decode(refuse_many_plain_bytes, body)
    except ValueError as error:
        raise MalformedBody(f"the body is not valid msgpack: {error}") from None


def parse_msgpack(model: type[ModelT], body: bytes) -> ModelT:
    """A request from the bytes of a msgpack body.

    Raises:
        BodyTooLarge: The body would take too much memory as objects.
        MalformedBody, UnknownField, InvalidField: It is no msgpack, or no such request.
    """
    refuse_large_msgpack(body)
    try:
        content = _read_fields(body)
    except ValueError as error:
        raise MalformedBody(f"the body is not valid msgpack: {error}") from None
    return parse(model, content)


def _read_fields(body: bytes) -> dict[str, Any]:
    """A request's plain objects, with arrays for the `bin` of its items.

    Each item is read by a call of its own, which keeps Python's lock, and checked before the next
    one is read.

    Raises:
        ValueError: The body is no msgpack.
        MalformedBody, InvalidField: It is no map, or holds what JSON could not, or `bin` elsewhere.
        BodyTooLarge: It has too many values in one place.
    """
    try:
        fields = _decode(_FIELDS.decode, body)
    except ValueError:
        kind = type(unpack(body))  # raises if the body is broken
        raise MalformedBody(f"the body must be a map, got {kind.__name__}") from None
    raw = bytes(fields.pop("items", _NO_ITEMS))
    content = {key: unpack(bytes(value)) for key, value in fields.items()}
    refuse_many_values(content, MAX_OTHER_VALUES)
    _check(content, ())
    if raw is not _NO_ITEMS:
        if num_entries(raw) is None:
            items = unpack(raw)
            refuse_many_values(items, MAX_OTHER_VALUES)
            _check(items, ("items",))
        else:
            entries = _decode(_ENTRIES.decode, raw)
            items = [_read_item(bytes(entry), ("items", i)) for i, entry in enumerate(entries)]
        content["items"] = items
    return content


def _read_item(raw: bytes, where: Path) -> object:
    """One item's plain objects and arrays. Raises as `_read_fields`."""
    item = unpack(raw)
    if type(item) is not dict:
        refuse_many_values(item, MAX_OTHER_VALUES)
        _check(item, where)
        return item
    refuse_many_values([*item], MAX_OTHER_VALUES)
    return {key: _field(key, value, where) for key, value in item.items()}


def _field(key: object, value: object, where: Path) -> object:
    dtype = _VECTORS.get(key) if isinstance(key, str) else None
    if dtype is not None and type(value) is bytes:
        assert isinstance(key, str)
        return _array(key, value, dtype, (*where, key))
    if type(value) is list or type(value) is dict:
        refuse_many_values(value, limit_of(str(key), value), (str(key)[:64], int(where[1])))
    is_ids = type(value) is list and bool(value) and type(value[0]) is int
    if dtype is None or (key == "prompt" and not is_ids):
        _check({key: value}, where)
    return value  # a vector's strict model takes nothing but numbers


def _array(
    key: str, value: bytes, dtype: np.dtype[Any], where: Path
) -> np.ndarray[Any, np.dtype[Any]]:
    shape: tuple[int, ...] = (-1,)
    noun = f"little-endian {_DTYPE_NAMES[dtype]}"
    num_bytes = dtype.itemsize
    if key == "spans":
        shape, noun, num_bytes = (-1, 2), f"pairs of {noun}", 2 * num_bytes
    if len(value) % num_bytes:
        raise InvalidField(f"{len(value)} bytes are no {noun}", param=path(where))
    return np.frombuffer(value, dtype=dtype).reshape(shape)


def _check(value: object, where: Path) -> None:
    """Raises MalformedBody or InvalidField for a value that JSON could not hold."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if len(where) > _MAX_DEPTH:
        raise MalformedBody(f"the body nests deeper than {_MAX_DEPTH} levels")
    if isinstance(value, dict):
        for key, entry in value.items():
            if type(key) is not str:
                raise MalformedBody(f"the keys of a map must be strings, got {type(key).__name__}")
            _check(entry, (*where, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check(entry, (*where, index))
    elif isinstance(value, bytes):
        param = path(where)[:_MAX_PATH_CHARACTERS]
        raise InvalidField(f"this field takes no binary data, got {len(value)} bytes", param=param)
    else:
        raise MalformedBody("the body has an extension type")
