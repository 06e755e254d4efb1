"""How much a body may hold: what takes far more memory as objects than as bytes, or what one item
cannot use, is refused before the body is read.

Memory has one count for each media. Of JSON it counts lists and objects: each becomes an object of
up to 90 bytes where `[],` has 3. Of msgpack it counts plain bytes, which are neither text nor `bin`
but lists, maps and single numbers: a plain byte becomes an object of up to 150 bytes, where a byte
of text or `bin` stays one.

Time has a count of its own. Reading a field of an item is one call that keeps Python's lock: for
3 s where a prompt had 300,000 messages of one character, and all other callers waited. So a field
has only so many values, and so have together those outside of the items.

A number of thousands of digits takes a quarter of a millisecond whenever it becomes text, and a
body has room for thousands of these. So numbers have only so many digits.

It knows where a request has its items, and leaves counting in bytes to `json_values` and
`msgpack_values`. This module needs msgspec.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedJson
from tokenreward.wire.item import Item
from tokenreward.wire.json_values import (
    has_long_number,
    most_values,
    num_marks,
    num_outside_strings,
)

MAX_CONTAINERS = 2**20  # 4096 items with 255 spans each
# Of these, objects. A message becomes four objects of Python, and a search for cycles that finds
# two millions of them took half a second, in which no other thread runs.
MAX_OBJECTS = 2**18
MAX_PLAIN_BYTES = 4 * 2**20
# Of a body in another program's form, whose items are not told apart here. Keys are texts, too.
MAX_FOREIGN_CONTAINERS = 2**17
MAX_FOREIGN_TEXTS = 2**19
MAX_FOREIGN_VALUES = 2**21  # more ids than a queue takes; 8 millions kept all others for 0.6 s
MAX_DIGITS = 400  # the largest double has 309 before its point
# Values in one field of an item: of a list of numbers, of pairs of numbers or of texts; and of all
# that a chat template takes, whose objects take longer to read. Then those outside of the items.
MAX_VECTOR_VALUES = 2**19
MAX_TEMPLATE_VALUES = 2**16
MAX_OTHER_VALUES = 2**16
MAX_ITEMS = 2**16

MIN_LONG_BYTES = 2**18  # a smaller body has room for a few long numbers
_VECTOR_FIELDS = frozenset({"spans", "steps", "mask", "policy_logprobs", "ref_logprobs"})
_VALUES_OF_AN_ITEM = 32  # its own brackets and its fields, with those that it does not have
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

    Raises:
        BodyTooLarge: There are more than `limit`, which is `MAX_CONTAINERS` by default, or more
            objects than `MAX_OBJECTS`.
    """
    limits = ((b"[{", limit or MAX_CONTAINERS, "lists and objects"), (b"{", MAX_OBJECTS, "objects"))
    for marks, most, noun in limits:
        if num_marks(body, marks) <= most:
            continue
        num_containers = num_outside_strings(body, marks)
        if num_containers > most:
            raise BodyTooLarge(
                f"the body has {num_containers} {noun}, the limit is {most}: "
                "send fewer items, ids as `ids_b64`, or spans as `bin` in msgpack"
            )


def refuse_long_numbers(body: bytes) -> None:
    """Raises MalformedJson if a number of a large JSON body has more than `MAX_DIGITS` digits."""
    if len(body) >= MIN_LONG_BYTES and has_long_number(body, MAX_DIGITS):
        raise MalformedJson(f"a number has more than {MAX_DIGITS} digits")


def refuse_large_foreign_json(body: bytes) -> None:
    """Counts what a JSON body of another program holds: lists, objects, texts, and all values.

    Raises:
        BodyTooLarge: There are too many.
        MalformedJson: A number is too long.
    """
    refuse_many_containers(body, MAX_FOREIGN_CONTAINERS)
    if num_marks(body, b'"') // 2 > MAX_FOREIGN_TEXTS:
        num_texts = num_outside_strings(body, b'"') // 2
        if num_texts > MAX_FOREIGN_TEXTS:
            raise BodyTooLarge(
                f"the body has {num_texts} texts, the limit is {MAX_FOREIGN_TEXTS}: "
                "send fewer items"
            )
    if most_values(body) > MAX_FOREIGN_VALUES:
        num_values = num_outside_strings(body, b"[{,")
        if num_values > MAX_FOREIGN_VALUES:
            raise BodyTooLarge(
                f"the body has {num_values} values, the limit is {MAX_FOREIGN_VALUES}: "
                "send fewer items"
            )
    refuse_long_numbers(body)


def refuse_large_json(body: bytes) -> None:
    """Counts what a JSON request holds: it finds every field and builds no Python value of any.

    Raises:
        BodyTooLarge: It has too many lists and objects, items, or values in one place.
        MalformedJson, InvalidField: It has many values, and is no request; or a number is too
            long.
    """
    refuse_many_containers(body)
    refuse_long_numbers(body)
    num_values = most_values(body)
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
        raise too_many_values(f"{num_values} values", MAX_OTHER_VALUES, None)


def _count_field(text: bytes, name: str, index: int) -> int:
    """Counts the values in a field of an item, roughly: commas in strings count as well.

    Raises:
        BodyTooLarge: The field has too many, exactly counted.
    """
    num_values = most_values(text)
    limit = MAX_TEMPLATE_VALUES
    if name in _VECTOR_FIELDS or b"{" not in text:
        limit = MAX_VECTOR_VALUES
    if num_values > limit and not text.startswith(b'"'):
        num_outside = num_outside_strings(text, b"[{,")
        if num_outside > limit:
            raise too_many_values(f"{num_outside} values", limit, (name, index))
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
                raise too_many_values(f"more than {limit} values", limit, place)
            entries = value.values() if isinstance(value, dict) else value
            values += [entry for entry in entries if isinstance(entry, (list, dict))]


def limit_of(name: str, value: object) -> int:
    """The most values that a field of an item may have, as plain objects."""
    is_vector = isinstance(value, list) and not (value and isinstance(value[0], dict))
    return MAX_VECTOR_VALUES if name in _VECTOR_FIELDS or is_vector else MAX_TEMPLATE_VALUES


def too_many_values(count: str, limit: int, place: tuple[str, int] | None) -> BodyTooLarge:
    if place is None:
        return BodyTooLarge(
            f"there are {count} outside of the fields of the items, the limit is {limit}"
        )
    return BodyTooLarge(
        f"there are {count} in one field, the limit is {limit}",
        param=f"items[{place[1]}].{place[0]}",
    )
