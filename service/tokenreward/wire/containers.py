"""How many lists and objects a JSON body holds.

Each becomes an object of its own, of up to 90 bytes where `[],` has 3, so a body that holds very
many is refused before it is read. It knows brackets and quotes, and nothing of what a request has
in them.
"""

from __future__ import annotations

from tokenreward.errors import BodyTooLarge

MOST_CONTAINERS = 2**20  # 4096 items with 255 spans each

_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'"[{'))


def refuse_many_containers(body: bytes) -> None:
    """Raises BodyTooLarge. Of a body that is no JSON it counts right up to the first fault, where
    reading ends."""
    if body.count(b"[") + body.count(b"{") <= MOST_CONTAINERS:
        return
    num_containers = _outside_strings(body)
    if num_containers > MOST_CONTAINERS:
        raise BodyTooLarge(
            f"the body has {num_containers} lists and objects, the limit is {MOST_CONTAINERS}: "
            "send fewer items, ids "
            "as `ids_b64`, or spans as `bin` in msgpack"
        )


def _outside_strings(body: bytes) -> int:
    """The brackets that open a list or an object; each step takes time in proportion to the
    body."""
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = unescaped.translate(None, _ALL_BUT_MARKS)
    # Two quotes side by side leave everything behind them as much inside or outside as it was.
    return sum(map(len, marks.replace(b'""', b"").split(b'"')[::2]))
