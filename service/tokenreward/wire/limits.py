"""How much a body may hold: what takes far more memory as objects than as bytes is refused before
the body is read.

There is one count for each media. Of JSON it counts lists and objects: each becomes an object of up
to 90 bytes where `[],` has 3. Of msgpack it counts plain bytes, which are neither text nor `bin`
but lists, maps and single numbers: a plain byte becomes an object of up to 150 bytes, where a byte
of text or `bin` stays one.

It knows brackets and type bytes, and where a request has its items. This module needs msgspec.
"""

from __future__ import annotations

import msgspec

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedBody

MAX_CONTAINERS = 2**20  # 4096 items with 255 spans each
MAX_PLAIN_BYTES = 4 * 2**20

_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'"[{'))
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


class _BodyLayout(msgspec.Struct):
    items: list[_ItemLayout]


_DECODER = msgspec.msgpack.Decoder(_BodyLayout)


def refuse_many_containers(body: bytes) -> None:
    """Counts the lists and objects of a JSON body, in time proportional to its length.

    A body that is no JSON is counted up to its first fault, where reading ends.

    Raises:
        BodyTooLarge: There are more than `MAX_CONTAINERS`.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_CONTAINERS:
        return
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = unescaped.translate(None, _ALL_BUT_MARKS)
    # Every second piece between quotes lies outside strings: of `["[":{` they are `[` and, less
    # the colon, `{`. Two quotes in a row are a string without brackets, or the end of one string
    # and the start of the next. Either way they may go, which makes fewer pieces.
    outside = marks.replace(b'""', b"").split(b'"')[::2]
    num_containers = sum(map(len, outside))
    if num_containers > MAX_CONTAINERS:
        raise BodyTooLarge(
            f"the body has {num_containers} lists and objects, the limit is {MAX_CONTAINERS}: "
            "send fewer items, ids as `ids_b64`, or spans as `bin` in msgpack"
        )


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
