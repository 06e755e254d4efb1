"""What the bytes of a msgpack request hold, counted before any of it becomes an object of Python.

The length of a list stands in its head, and msgspec finds where each field begins and ends. Within
a field the count goes from head to head, as deep as it nests, and other threads run meanwhile. It
knows type bytes, and where a request has its items. This module needs msgspec.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedBody
from tokenreward.wire import limits
from tokenreward.wire.limits import too_many_values

SMALL_BYTES = 2**16  # smaller bodies are read as they are
MAX_OTHER_BYTES = 2**20  # outside of the items, or in unknown fields of them; texts count there
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
_MAPS = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
_LISTS = frozenset([*range(0x90, 0xA0), 0xDC, 0xDD])
_TEXTS = frozenset([*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB])  # and `bin`
_EXTENSIONS = frozenset([0xC7, 0xC8, 0xC9])
# By type byte: how many bytes after it say the length of a value; how many a number or a short
# extension has. The other type bytes hold the length themselves, or are whole values.
_LENGTH_BYTES = dict(enumerate([1, 2, 4] * 2, 0xC4))
_LENGTH_BYTES |= dict(enumerate([1, 2, 4, 2, 4, 2, 4], 0xD9))
_NUMBER_BYTES = dict(enumerate([4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17], 0xCA))


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
    if body[0] not in _MAPS:
        raise MalformedBody("the body must be a map")
    raw = bytes(_BODY.decode(body).items)
    num_items = num_entries(raw)
    if num_items is None:
        raise InvalidField("must be a list of items", param="items")
    if num_items > limits.MAX_ITEMS:
        raise BodyTooLarge(f"there are {num_items}, the limit is {limits.MAX_ITEMS}", param="items")
    num_others = len(body) - len(raw)
    if num_others > MAX_OTHER_BYTES:
        raise BodyTooLarge(
            f"there are {num_others} bytes outside of the items, the limit is {MAX_OTHER_BYTES}"
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
    num_fields = num_plain = num_spans = num_messages = 0
    for index, item in enumerate(items):
        for name in _FIELDS:
            field = bytes(getattr(item, name))
            if field == _NONE:
                continue
            num_fields += len(field)
            num_plain += len(field) - _num_text_bytes(field, (name, index))
            if name in ("spans", "steps"):
                num_spans += num_entries(field) or 0
            elif name == "prompt" and _first_byte(field) in _MAPS:
                num_messages += num_entries(field) or 0
        if num_plain > limits.MAX_PLAIN_BYTES:
            break  # the rest could take seconds to look through
    num_unknown = num_items_bytes - num_fields - _ITEM_BYTES * len(items)
    num_plain += num_bytes - num_fields
    for count, most, noun in (
        (num_plain, limits.MAX_PLAIN_BYTES, "bytes that are neither the texts of items nor `bin`"),
        (num_spans, MAX_SPANS, "spans or steps as lists"),
        (num_messages, limits.MAX_OBJECTS, "messages"),
        (num_unknown, MAX_OTHER_BYTES, "bytes in unknown fields"),
    ):
        if count > most:
            raise BodyTooLarge(
                f"the body has too many {noun}, the limit is {most}: send vectors as `bin`, or "
                "fewer items"
            )


def num_entries(raw: bytes) -> int | None:
    """How many entries a list says that it has; None if it is no list."""
    first = raw[0]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    if first in (0xDC, 0xDD):
        return int.from_bytes(raw[1 : _head_bytes(raw)], "big")
    return None


def count_values(raw: bytes, limit: int) -> tuple[int, int]:
    """Counts within one value of valid msgpack, at all depths, until there are more values than
    `limit`.

    Returns:
        How many values are below the outermost one, and how many bytes are text or `bin`. Keys are
        no values, and are texts. The head of a text is none of its bytes.
    """
    place = num_values = num_text_bytes = 0
    while place < len(raw) and num_values <= limit:
        first = raw[place]
        place += 1
        length = first & (0x1F if first >= 0xA0 else 0x0F)
        if num_length_bytes := _LENGTH_BYTES.get(first):
            length = int.from_bytes(raw[place : place + num_length_bytes], "big")
            place += num_length_bytes
        if first in _LISTS or first in _MAPS:
            num_values += length
        elif first in _TEXTS:
            num_text_bytes += length
            place += length
        elif first in _EXTENSIONS:
            place += 1 + length
        else:
            place += _NUMBER_BYTES.get(first, 0)
    return num_values, num_text_bytes


def _num_text_bytes(field: bytes, place: tuple[str, int]) -> int:
    """How many bytes of a field are text or `bin`, at any depth; 0 for a list of numbers.

    Raises:
        BodyTooLarge: It has too many values, however deep.
    """
    is_list = field[0] in _LISTS
    first = _first_byte(field) if is_list else field[0]
    is_vector = place[0] in _VECTORS or (is_list and first not in _MAPS)
    limit = limits.MAX_VECTOR_VALUES if is_vector else limits.MAX_TEMPLATE_VALUES
    if len(field) <= limit and first not in _MAPS and first not in _TEXTS:
        return 0  # a value has a byte at least
    num_values, num_bytes = count_values(field, limit)
    if num_values > limit:
        raise too_many_values(f"more than {limit} values", limit, place)
    return num_bytes


def _first_byte(raw: bytes) -> int | None:
    """The type byte of the first entry of a list; None if the list is empty."""
    place = _head_bytes(raw)
    return raw[place] if place < len(raw) else None


def _head_bytes(raw: bytes) -> int:
    """The bytes before the first entry of a list."""
    return {0xDC: 3, 0xDD: 5}.get(raw[0], 1)
