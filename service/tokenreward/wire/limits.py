"""How much a body may hold: what takes far more memory as objects than as bytes, or what one item
cannot use, is refused before the body is read.

Memory has one count for each media. Of JSON it counts lists and objects: each becomes an object of
up to 90 bytes where `[],` has 3. Of msgpack it counts plain bytes, which are neither text nor `bin`
but lists, maps and single numbers: a plain byte becomes an object of up to 150 bytes, where a byte
of text or `bin` stays one.

Time has a count of its own. Reading a field of an item is one call that keeps Python's lock: for
3 s where a prompt had 300,000 messages of one character, and all other callers waited. So a field
has only so many values, and so have together those outside of the items.

It knows brackets and type bytes, and where a request has its items. This module needs msgspec.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedBody, MalformedJson
from tokenreward.wire.item import Item

MAX_CONTAINERS = 2**20  # 4096 items with 255 spans each
MAX_PLAIN_BYTES = 4 * 2**20
# Of a body in another program's form, whose items are not told apart here. Keys are texts, too.
MAX_FOREIGN_CONTAINERS = 2**17
MAX_FOREIGN_TEXTS = 2**19
# Values in one field of an item: of a list of numbers, of pairs of numbers or of texts; and of all
# that a chat template takes, whose objects take longer to read. Then those outside of the items.
MAX_VECTOR_VALUES = 2**19
MAX_TEMPLATE_VALUES = 2**16
MAX_OTHER_VALUES = 2**16
MAX_ITEMS = 2**16

_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'"[{'))
_ALL_BUT_VALUES = bytes(set(range(256)) - set(b'"[{,'))
_VECTOR_FIELDS = frozenset({"spans", "steps", "mask", "policy_logprobs", "ref_logprobs"})
_VALUES_OF_AN_ITEM = 32  # its own brackets and its fields, with those that it does not have
_MIN_ITEM_BYTES = 17  # plain bytes of an item: a map with `prompt` and `response`
_ABSENT = msgspec.Raw(b"\xc0")


class _ItemLayout(msgspec.Struct, gc=False):
    # Required fields, so that a list of millions of empty maps is left at the first.
    prompt: msgspec.Raw
    response: msgspec.Raw
    spans: msgspec.Raw = _ABSENT
    mask: msgspec.Raw = _ABSENT
    policy_logprobs: msgspec.Raw = _ABSENT
    ref_logprobs: msgspec.Raw = _ABSENT


_DECODER: Any = msgspec.msgpack.Decoder(msgspec.defstruct("_BODY", [("items", list[_ItemLayout])]))

_JSON_FIELDS = tuple(Item.model_fields)
_NO_VALUE = msgspec.Raw(b"null")
# A missing field is no error here: the parser of the body says so.
_JSON_ITEM = msgspec.defstruct(
    "_JSON_ITEM", [(name, msgspec.Raw, _NO_VALUE) for name in _JSON_FIELDS], gc=False
)
_JSON_DECODER: Any = msgspec.json.Decoder(
    msgspec.defstruct("_JSON_BODY", [("items", list[_JSON_ITEM])])  # type: ignore[valid-type]
)


def refuse_many_containers(body: bytes, limit: int | None = None) -> None:
    """Counts the lists and objects of a JSON body, in time proportional to its length.

    A body that is no JSON is counted up to its first fault, where reading ends.

    Raises:
        BodyTooLarge: There are more than `limit`, which is `MAX_CONTAINERS` by default.
    """
    if limit is None:
        limit = MAX_CONTAINERS
    if body.count(b"[") + body.count(b"{") <= limit:
        return
    num_containers = _num_outside_strings(body, _ALL_BUT_MARKS)
    if num_containers > limit:
        raise BodyTooLarge(
            f"the body has {num_containers} lists and objects, the limit is {limit}: "
            "send fewer items, ids as `ids_b64`, or spans as `bin` in msgpack"
        )


def refuse_large_foreign_json(body: bytes) -> None:
    """Counts what a JSON body of another program holds: lists, objects and texts.

    Raises:
        BodyTooLarge: There are too many.
    """
    refuse_many_containers(body, MAX_FOREIGN_CONTAINERS)
    num_texts = (body.count(b'"') - body.count(b'\\"')) // 2
    if num_texts > MAX_FOREIGN_TEXTS:
        raise BodyTooLarge(
            f"the body has {num_texts} texts, the limit is {MAX_FOREIGN_TEXTS}: send fewer items"
        )


def _num_outside_strings(text: bytes, all_but_marks: bytes) -> int:
    """How many bytes of JSON stand outside strings and are not in `all_but_marks`, which has all
    bytes but a few marks and the quote."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = unescaped.translate(None, all_but_marks)
    # Every second piece between quotes lies outside strings: of `["[":{` they are `[` and, less
    # the colon, `{`. Two quotes in a row are a string without brackets, or the end of one string
    # and the start of the next. Either way they may go, which makes fewer pieces.
    outside = marks.replace(b'""', b"").split(b'"')[::2]
    return sum(map(len, outside))


def refuse_large_json(body: bytes) -> None:
    """Counts what a JSON request holds: it finds every field and builds no Python value of any.

    Raises:
        BodyTooLarge: It has too many lists and objects, items, or values in one place.
        MalformedJson, InvalidField: It has many values, and is no request.
    """
    refuse_many_containers(body)
    num_values = _most_values(body)
    if num_values <= min(MAX_OTHER_VALUES, MAX_TEMPLATE_VALUES):
        return
    try:
        items = _JSON_DECODER.decode(body).items
    except msgspec.ValidationError as error:  # it names our fields and types, and quotes nothing
        raise InvalidField(f"must be a list of items: {error}", param="items") from None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedJson(f"the body is not valid JSON: {error}") from None
    if len(items) > MAX_ITEMS:
        raise BodyTooLarge(f"there are {len(items)}, the limit is {MAX_ITEMS}", param="items")
    num_values -= _VALUES_OF_AN_ITEM * len(items)
    for index, item in enumerate(items):
        for name in _JSON_FIELDS:
            raw = getattr(item, name)
            if raw is not _NO_VALUE:
                num_values -= _count_field(bytes(raw), name, index)
    if num_values > MAX_OTHER_VALUES:
        raise _too_many_values(f"{num_values} values", MAX_OTHER_VALUES, None)


def _count_field(text: bytes, name: str, index: int) -> int:
    """Counts the values in a field of an item, roughly: commas in strings count as well.

    Raises:
        BodyTooLarge: The field has too many, exactly counted.
    """
    num_values = _most_values(text)
    limit = MAX_TEMPLATE_VALUES
    if name in _VECTOR_FIELDS or b"{" not in text:
        limit = MAX_VECTOR_VALUES
    if num_values > limit and not text.startswith(b'"'):
        num_outside = _num_outside_strings(text, _ALL_BUT_VALUES)
        if num_outside > limit:
            raise _too_many_values(f"{num_outside} values", limit, (name, index))
    return num_values


def refuse_many_values(value: object, limit: int, place: tuple[str, int] | None = None) -> None:
    """Counts the values within plain objects, and stops at the limit.

    Args:
        value: A list, a dictionary, or anything else, which has none.
        limit: The most values.
        place: The field and the index of an item; None outside of items.

    Raises:
        BodyTooLarge: There are more.
    """
    num_values = 0
    values: list[Any] = [value]
    while values:
        value = values.pop()
        if isinstance(value, (list, dict)):
            num_values += len(value)
            if num_values > limit:
                raise _too_many_values(f"more than {limit} values", limit, place)
            entries = value.values() if isinstance(value, dict) else value
            values += [entry for entry in entries if isinstance(entry, (list, dict))]


def limit_of(name: str, value: object) -> int:
    """The most values that a field of an item may have, as plain objects."""
    is_vector = isinstance(value, list) and not (value and isinstance(value[0], dict))
    return MAX_VECTOR_VALUES if name in _VECTOR_FIELDS or is_vector else MAX_TEMPLATE_VALUES


def _too_many_values(count: str, limit: int, place: tuple[str, int] | None) -> BodyTooLarge:
    if place is None:
        return BodyTooLarge(
            f"there are {count} outside of the fields of the items, the limit is {limit}"
        )
    return BodyTooLarge(
        f"there are {count} in one field, the limit is {limit}",
        param=f"items[{place[1]}].{place[0]}",
    )


def _most_values(text: bytes) -> int:
    """At least as many values as JSON has below its outermost one: those commas and brackets count,
    too, that are in strings."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def refuse_many_plain_bytes(body: bytes) -> None:
    """Counts the plain bytes of a large msgpack body: it finds every field and builds no
    Python value of any.

    Raises:
        BodyTooLarge: There are more than `MAX_PLAIN_BYTES`.
        MalformedBody, InvalidField: The body is large and no request.
        MsgspecError, RecursionError, UnicodeDecodeError: It is broken msgpack.
    """
    if len(body) <= MAX_PLAIN_BYTES:
        return
    if not (0x80 <= body[0] <= 0x8F or body[0] in (0xDE, 0xDF)):
        raise MalformedBody("the body must be a map")
    try:
        layout = _DECODER.decode(body)
    except msgspec.ValidationError as error:  # it names our fields and types, and quotes nothing
        raise InvalidField(f"must be a list of items: {error}", param="items") from None
    num_plain = len(body)
    # Very many items are over the limit by themselves, and are not looked through.
    if len(layout.items) * _MIN_ITEM_BYTES <= MAX_PLAIN_BYTES:
        num_plain -= sum(_num_compact_bytes(item) for item in layout.items)
    if num_plain > MAX_PLAIN_BYTES:
        raise BodyTooLarge(
            f"{num_plain} bytes of the body are neither the text of an item nor `bin`, the limit "
            f"is {MAX_PLAIN_BYTES}: send vectors as `bin`, or fewer items"
        )


def _num_compact_bytes(item: _ItemLayout) -> int:
    """The bytes of an item's fields that are text or `bin`."""
    num_bytes = 0
    for name in _ItemLayout.__struct_fields__:
        field = memoryview(getattr(item, name))
        first = field[0]
        if 0xA0 <= first <= 0xBF or 0xC4 <= first <= 0xC6 or 0xD9 <= first <= 0xDB:
            num_bytes += len(field)
    return num_bytes
