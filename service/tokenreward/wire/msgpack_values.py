"""What the bytes of a msgpack request hold, counted before any of it becomes an object of Python.

The length of a list stands in its head, and msgspec finds where each field begins and ends. It
knows type bytes, and where a request has its items. This module needs msgspec.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedBody
from tokenreward.wire import limits
from tokenreward.wire.limits import too_many_values

SMALL_BYTES = 2**16  # smaller bodies are read as they are
# Plain bytes in one field of messages, or outside of the items: texts count there, but for those
# of messages.
MAX_FIELD_BYTES = 2**20
MAX_SPANS = 2**19  # as lists, of all items; each becomes two lists
_ITEM_BYTES = 256  # the names of its fields, and the short ones
_VECTORS = ("spans", "mask", "policy_logprobs", "ref_logprobs", "steps")
_FIELDS = ("prompt", "response", "tools", "chat_template_kwargs", *_VECTORS)
_NONE = b"\xc0"

_BODY: Any = msgspec.msgpack.Decoder(
    msgspec.defstruct("_BODY", [("items", msgspec.Raw, msgspec.Raw(_NONE))])
)
_ITEM = msgspec.defstruct(
    "_ITEM", [(name, msgspec.Raw, msgspec.Raw(_NONE)) for name in _FIELDS], gc=False
)
_ITEMS: Any = msgspec.msgpack.Decoder(list[_ITEM])  # type: ignore[valid-type]
_MESSAGES = msgspec.msgpack.Decoder(list[dict[str, msgspec.Raw]])


def refuse_many_plain_bytes(body: bytes) -> None:
    """Counts what a msgpack body holds besides text and `bin`: it finds every field and builds no
    Python value of any.

    Raises:
        BodyTooLarge: It has too many plain bytes, items, or entries in one place.
        MalformedBody, InvalidField: The body is large and no request.
        MsgspecError, RecursionError, UnicodeDecodeError: It is broken msgpack.
    """
    if len(body) <= SMALL_BYTES:
        return
    if not _is_map(body):
        raise MalformedBody("the body must be a map")
    raw = bytes(_BODY.decode(body).items)
    num_items = num_entries(raw)
    if num_items is None:
        raise InvalidField("must be a list of items", param="items")
    if num_items > limits.MAX_ITEMS:
        raise BodyTooLarge(f"there are {num_items}, the limit is {limits.MAX_ITEMS}", param="items")
    num_others = len(body) - len(raw)
    if num_others > MAX_FIELD_BYTES:
        raise BodyTooLarge(
            f"there are {num_others} bytes outside of the items, the limit is {MAX_FIELD_BYTES}"
        )
    try:
        items = _ITEMS.decode(raw)
    except msgspec.ValidationError as error:  # it names our fields and types, and quotes nothing
        raise InvalidField(f"must be a list of items: {error}", param="items") from None
    _refuse_items(items, num_bytes=len(body), num_items_bytes=len(raw))


def _refuse_items(items: list[Any], *, num_bytes: int, num_items_bytes: int) -> None:
    """Refuses items that hold too much, each or together. Raises BodyTooLarge.

    Args:
        items: The fields of each, as they are in the body.
        num_bytes: The bytes of the body.
        num_items_bytes: Those of its items.
    """
    num_plain, num_spans, num_messages = num_bytes, 0, 0
    num_unknown = num_items_bytes - _ITEM_BYTES * len(items)
    others: list[tuple[bytes, int, tuple[str, int]]] = []  # neither text nor `bin`
    for index, item in enumerate(items):
        for name in _FIELDS:
            field = bytes(getattr(item, name))
            num_unknown -= len(field)
            if _is_text_or_bin(field):
                num_plain -= len(field)
                continue
            count = num_entries(field) or 0
            if name in ("spans", "steps"):
                num_spans += count
            elif name == "prompt" and _is_map(field[_head_bytes(field) :]):
                num_messages += count
            others.append((field, count, (name, index)))
    for count, most, noun in (
        (num_plain, limits.MAX_PLAIN_BYTES, "bytes that are neither the text of an item nor `bin`"),
        (num_spans, MAX_SPANS, "spans or steps as lists"),
        (num_messages, limits.MAX_OBJECTS, "messages"),
        (num_unknown, MAX_FIELD_BYTES, "bytes in unknown fields"),
    ):
        if count > most:
            raise BodyTooLarge(
                f"the body has {count} {noun}, the limit is {most}: send vectors as `bin`, or "
                "fewer items"
            )
    for field, count, place in others:
        _refuse_field(field, count, place)


def num_entries(raw: bytes) -> int | None:
    """How many entries a list says that it has; None if it is no list."""
    first = raw[0]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first in (0xDC, 0xDD):
        return int.from_bytes(raw[1 : _head_bytes(raw)], "big")
    return None


def _refuse_field(field: bytes, count: int, place: tuple[str, int]) -> None:
    """Refuses a field of an item that is neither text nor `bin`. Raises BodyTooLarge."""
    if count > limits.MAX_VECTOR_VALUES:
        raise too_many_values(f"{count} values", limits.MAX_VECTOR_VALUES, place)
    if place[0] in _VECTORS or len(field) <= MAX_FIELD_BYTES:
        return
    if not _is_map(field) and not _is_map(field[_head_bytes(field) :]):  # ids
        return
    num_plain = len(field)
    try:
        for message in _MESSAGES.decode(field):
            texts = (value for value in map(bytes, message.values()) if _is_text_or_bin(value))
            num_plain -= sum(map(len, texts))
    except msgspec.ValidationError:
        pass  # all of it is plain
    if num_plain > MAX_FIELD_BYTES:
        raise too_many_values(f"{num_plain} bytes besides texts", MAX_FIELD_BYTES, place)


def _head_bytes(raw: bytes) -> int:
    """The bytes before the first entry of a list."""
    return {0xDC: 3, 0xDD: 5}.get(raw[0], 1)


def _is_map(raw: bytes) -> bool:
    return bool(raw) and (0x80 <= raw[0] <= 0x8F or raw[0] in (0xDE, 0xDF))


def _is_text_or_bin(raw: bytes) -> bool:
    first = raw[0]
    return 0xA0 <= first <= 0xBF or 0xC4 <= first <= 0xC6 or 0xD9 <= first <= 0xDB
