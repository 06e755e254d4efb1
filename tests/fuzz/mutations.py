"""Changes a valid body or a header into one that is nearly valid. All chance comes from the random
generator that is passed in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

_TEXTS = [
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e\u200d",
    "e\u0301" * 40,
    "\U0001f468\u200d\U0001f469",
    "<|end|>",
    "<|im_start|>assistant\n",
    "{{ response }}",
    "{% for m in messages %}{{ m }}{% endfor %}",
    "{{ ''.__class__ }}",
    "\r\n\t",
    "a" * 5000,
    "word " * 2000,
    "AAAA",
    "____",
    "nan",
    "../../etc",
    "x=endogenous",
    "conversation",
    "sequence",
    "base64",
]
_NUMBERS = [0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**63, 2**64, 10**40, -(2**40)]
_FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), 3.0]
_HEADER_VALUES = [
    b"",
    b"\xff\xfe",
    b"\xb2",
    b"a" * 3000,
    b"Bearer \xe9",
    b"nan",
    b"1e308",
    b"0.0001",
    b"-1",
    b"3600.1",
    b"5",
    b"application/msgpack",
    b"application/json; charset=utf-16",
    b"text/plain, */*;q=0",
    b"gzip",
    b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01",
]
_HEADERS = [
    b"authorization",
    b"x-request-id",
    b"x-request-timeout-seconds",
    b"x-tokenreward-caller",
    b"x-tokenreward-protocol",
    b"serve_multiplexed_model_id",
    b"traceparent",
    b"tracestate",
    b"content-type",
    b"accept",
    b"content-encoding",
    b"origin",
    b"cookie",
    b"x-forwarded-for",
]
_WORDS = ["items", "prompt", "response", "spans", "steps", "mask", "options", "scorers", "combine"]


def odd_value(random: Random) -> Any:
    """A value that hardly any field takes."""
    kinds: list[Callable[[], Any]] = [
        lambda: random.choice(_TEXTS),
        lambda: random.choice(_NUMBERS),
        lambda: random.choice(_FLOATS),
        lambda: random.choice([None, True, False, [], {}, [[]], [None], {"": {}}]),
        lambda: [random.choice(_NUMBERS) for _ in range(random.randrange(40))],
        lambda: [[n, n + 1] for n in range(random.randrange(30))],
        lambda: {"ids_b64": random.choice(_TEXTS)},
        lambda: [{"role": random.choice(["user", "tool", "", "x"]), "content": odd_value(random)}],
        lambda: nested(random.choice([5, 60, 200]), random),
        lambda: [random.choice(_TEXTS)] * random.choice([1, 2, 300]),
    ]
    return random.choice(kinds)()


def nested(depth: int, random: Random) -> Any:
    """A list or an object within another, so deep."""
    value: Any = 0
    is_list = random.random() < 0.5
    for _ in range(depth):
        value = [value] if is_list else {"a": value}
    return value


def mutated(body: Any, random: Random) -> Any:
    """A body with one to four changes, anywhere."""
    body = copy.deepcopy(body)
    for _ in range(random.randint(1, 4)):
        places = _places(body)
        if not places:
            return odd_value(random)
        parent, key = random.choice(places)
        _change(parent, key, random)
    return body


def _places(body: Any) -> list[tuple[Any, Any]]:
    """Each value of a body, as its parent and its key there. Looks at the first levels alone."""
    places: list[tuple[Any, Any]] = []
    level = [body]
    for _ in range(8):
        below = []
        for parent in level:
            keys = list(parent) if isinstance(parent, dict) else range(len(parent))
            for key in list(keys)[:50]:
                places.append((parent, key))
                if isinstance(parent[key], dict | list):
                    below.append(parent[key])
        level = below
    return places


def _change(parent: Any, key: Any, random: Random) -> None:
    value = parent[key]
    kind = random.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[random.choice([*_WORDS, *_TEXTS])] = odd_value(random)
    elif kind == 2 and isinstance(parent, list):
        parent[key:key] = [copy.deepcopy(value)] * random.choice([1, 2, 20])
    elif kind == 3 and isinstance(value, str):
        place = random.randint(0, len(value))
        parent[key] = value[:place] + random.choice(_TEXTS) + value[place:]
    elif kind == 4 and isinstance(value, str):
        parent[key] = value * random.choice([0, 2, 50])
    elif kind == 5 and isinstance(value, int | float) and not isinstance(value, bool):
        parent[key] = value + random.choice([-1, 1, 0.5, 1000, -1000])
    elif kind == 6:
        parent[key] = random.choice([[value], {"a": value}, str(type(value))])
    else:
        parent[key] = odd_value(random)


def as_json(body: Any, random: Random) -> bytes:
    """JSON, which may have what JSON has not: NaN, lone surrogates, no end of nesting."""
    if random.random() < 0.005:
        return random.choice([b"[", b'{"a":']) * random.choice([2000, 30_000])
    text = json.dumps(body, ensure_ascii=random.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def mangled(body: bytes, random: Random) -> bytes:
    """Bytes of which some are lost, doubled, swapped or cut off."""
    data = bytearray(body)
    for _ in range(random.randint(1, 5)):
        place = random.randint(0, len(data))
        kind = random.randrange(4)
        if kind == 0:
            del data[place : place + random.choice([1, 2, 50])]
        elif kind == 1:
            data[place:place] = bytes(random.randrange(256) for _ in range(random.randint(1, 8)))
        elif kind == 2 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif kind == 3:
            del data[place:]
    return bytes(data)


def odd_headers(random: Random) -> list[tuple[bytes, bytes]]:
    """Up to two headers with values of other headers, or of any bytes."""
    if random.random() < 0.7:
        return []
    return [
        (random.choice(_HEADERS), random.choice(_HEADER_VALUES))
        for _ in range(random.randint(1, 2))
    ]
