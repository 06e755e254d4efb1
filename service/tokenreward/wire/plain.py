"""How much of a msgpack body is plain: neither text nor `bin`, but lists, maps and single numbers.

A byte of it becomes an object of up to 150 bytes in memory, where a byte of text or `bin` stays
one. So a large body is looked over before it is read: every field is found, and none is made an
object. It knows where a request has its fields. This module needs msgspec.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedBody

MOST_PLAIN_BYTES = 4 * 2**20

_LEAST_PLAIN_BYTES = 17  # of an item: a map, `prompt` and `response`
_ABSENT = msgspec.Raw(b"\xc0")


class _Item(msgspec.Struct, gc=False):
    # Required, so that a list of millions of empty maps is left at the first.
    prompt: msgspec.Raw
    response: msgspec.Raw
    spans: msgspec.Raw = _ABSENT
    mask: msgspec.Raw = _ABSENT
    policy_logprobs: msgspec.Raw = _ABSENT
    ref_logprobs: msgspec.Raw = _ABSENT


class _Request(msgspec.Struct):
    items: list[_Item]


_DECODER = msgspec.msgpack.Decoder(_Request)


def refuse_much_plain(body: bytes) -> None:
    """Raises BodyTooLarge; MalformedBody or InvalidField for a large body that is no request; of
    broken msgpack, what msgspec raises: MsgspecError, RecursionError, UnicodeDecodeError."""
    if len(body) <= MOST_PLAIN_BYTES:
        return
    if not (0x80 <= body[0] <= 0x8F or body[0] in (0xDE, 0xDF)):
        raise MalformedBody("the body must be a map")
    try:
        request = _DECODER.decode(body)
    except msgspec.ValidationError as error:  # which names our fields and types, and quotes nothing
        raise InvalidField(f"must be a list of items: {error}", param="items") from None
    num_plain = len(body)
    if len(request.items) * _LEAST_PLAIN_BYTES <= MOST_PLAIN_BYTES:
        num_plain -= sum(len(memoryview(raw)) for item in request.items for raw in _packed(item))
    if num_plain > MOST_PLAIN_BYTES:
        raise BodyTooLarge(
            f"{num_plain} bytes of the body are neither the text of an item nor `bin`, the limit "
            "is "
            f"{MOST_PLAIN_BYTES}: send vectors as `bin`, or fewer items"
        )


def _packed(item: _Item) -> Iterator[msgspec.Raw]:
    """The fields of an item that are text or `bin`."""
    for name in _Item.__struct_fields__:
        raw: msgspec.Raw = getattr(item, name)
        first = memoryview(raw)[0]
        if 0xA0 <= first <= 0xBF or 0xC4 <= first <= 0xC6 or 0xD9 <= first <= 0xDB:
            yield raw
