"""What a body costs in memory, by what it is made of: measured in processes of their own, as the
peak of resident bytes while it is parsed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenreward.errors import RequestError
from tokenreward.wire import RewardsRequest
from tokenreward.wire.limits import MAX_PLAIN_BYTES, MAX_VECTOR_VALUES
from tokenreward.wire.media import JSON, MSGPACK

MIB = 2**20
JSON_TIMES, MSGPACK_TIMES, PACKED_TIMES = 110, 170, 3
MUCH_JSON_TIMES = 55


def array(entry: bytes, num_bytes: int) -> bytes:
    """As many of the entry as fit."""
    count = num_bytes // len(entry)
    return b"\xdd" + struct.pack(">I", count) + entry * count


def packed(entries: dict[str, bytes]) -> bytes:
    fields = b"".join(msgspec.msgpack.encode(name) + value for name, value in entries.items())
    return b"\xde" + struct.pack(">H", len(entries)) + fields


def packed_item(**fields: bytes) -> bytes:
    item = packed({"prompt": b"\xa1p", "response": b"\xa1r", **fields})
    return packed({"scorer": b"\xa1x", "items": b"\x91" + item})


def listed(entry: bytes, num_bytes: int) -> bytes:
    return b"[" + b",".join([entry] * (num_bytes // (len(entry) + 1))) + b"]"


def json_item(**fields: bytes) -> bytes:
    entries = {"prompt": b'"p"', "response": b'"r"', **fields}
    written = b",".join(b'"%s":%s' % (name.encode(), value) for name, value in entries.items())
    return b'{"scorer":"x","items":[{' + written + b"}]}"


def many_keys(num_bytes: int) -> bytes:
    return b",".join(b'"k%07d":1' % number for number in range(num_bytes // 13))


Make = Callable[[int], bytes]
PLAIN: dict[str, Make] = {
    "empty arrays for items": lambda n: packed({"scorer": b"\xa1x", "items": array(b"\x90", n)}),
    "empty maps for items": lambda n: packed({"scorer": b"\xa1x", "items": array(b"\x80", n)}),
    "smallest items": lambda n: packed(
        {"items": array(packed({"prompt": b"\xa0", "response": b"\xa0"}), n)}
    ),
    "ids": lambda n: packed_item(response=array(b"\x07", n)),
    "mask": lambda n: packed_item(mask=array(b"\x01", n)),
    "spans that are numbers": lambda n: packed_item(spans=array(b"\x01", n)),
    "spans": lambda n: packed_item(spans=array(b"\x92\x01\x02", n)),
    "log-probs": lambda n: packed_item(policy_logprobs=array(b"\x01", n)),
    "tools": lambda n: packed_item(
        prompt=array(packed({"role": b"\xa1u"}), 9), tools=array(b"\x80", n)
    ),
    "content": lambda n: packed_item(
        prompt=b"\x91" + packed({"role": b"\xa1u", "content": array(b"\x01", n)})
    ),
    "options": lambda n: packed(
        {"items": b"\x91\x80", "options": packed({"a": array(b"\x90", n)})}
    ),
    "an unknown field": lambda n: packed({"zzz": array(b"\x90", n)}),
    "no map": lambda n: array(b"\x90", n),
    "more promised than there is": lambda n: b"\xdd\xff\xff\xff\xff" + b"\x90" * n,
    "depth": lambda n: b"\x91" * n,
}
TEXT: dict[str, Make] = {
    "arrays for items": lambda n: b'{"scorer":"x","items":' + listed(b"[]", n) + b"}",
    "objects for items": lambda n: b'{"scorer":"x","items":' + listed(b"{}", n) + b"}",
    "smallest items": lambda n: (
        b'{"scorer":"x","items":' + listed(b'{"prompt":"","response":""}', n) + b"}"
    ),
    "ids": lambda n: json_item(response=listed(b"7", n)),
    "mask": lambda n: json_item(mask=listed(b"1", n)),
    "spans": lambda n: json_item(spans=listed(b"[1,2]", n)),
    "log-probs": lambda n: json_item(policy_logprobs=listed(b"1", n)),
    "tools": lambda n: json_item(prompt=b'[{"role":"u"}]', tools=listed(b"{}", n)),
    "content": lambda n: json_item(prompt=b'[{"role":"u","content":' + listed(b"1", n) + b"}]"),
    "options": lambda n: b'{"items":[{}],"options":{"a":' + listed(b"[]", n) + b"}}",
    "an unknown field": lambda n: b'{"zzz":' + listed(b"[]", n) + b"}",
    "unknown fields": lambda n: b"{" + many_keys(n) + b"}",
    "unknown fields of an item": lambda n: b'{"items":[{' + many_keys(n) + b"}]}",
    "wrong weights": lambda n: (
        b'{"scorer":"x","combine":{' + many_keys(n).replace(b":1", b":[]") + b"}}"
    ),
    "depth": lambda n: b"[" * n,
}
VECTORS: dict[str, Make] = {
    "text": lambda n: packed_item(response=msgspec.msgpack.encode("a" * n)),
    "bin": lambda n: packed_item(response=msgspec.msgpack.encode(bytes(n))),
    "half of each": lambda n: packed_item(
        response=msgspec.msgpack.encode("a" * (n // 2)),
        policy_logprobs=msgspec.msgpack.encode(bytes(n // 2)),
    ),
}


def measure() -> None:
    """Prints, by case, the outcome and the peak in multiples of the body. Each is parsed in a
    fork."""
    cases = [(f"{name} as JSON", JSON, make(MIB), JSON_TIMES) for name, make in TEXT.items()]
    cases += [
        (f"{name} as msgpack", MSGPACK, make(MIB), MSGPACK_TIMES) for name, make in PLAIN.items()
    ]
    cases += [
        (f"much: {name} as JSON", JSON, make(16 * MIB), MUCH_JSON_TIMES)
        for name, make in TEXT.items()
    ]
    cases += [(f"much: {name}", MSGPACK, make(16 * MIB), 11) for name, make in PLAIN.items()]
    cases += [
        (f"much: {name}", MSGPACK, make(16 * MIB), PACKED_TIMES) for name, make in VECTORS.items()
    ]
    for name, media, body, most in cases:
        if os.fork():
            os.wait()
            continue
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before = peak_bytes()
        try:
            media.parse(RewardsRequest, body)
            outcome = "taken"
        except RequestError as error:
            outcome = error.code
        print(json.dumps([name, outcome, (peak_bytes() - before) / len(body), most]), flush=True)
        os._exit(0)


def peak_bytes() -> int:
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[str, float, float]]:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from wire.test_memory import measure; measure()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return {
        name: (outcome, times, most)
        for name, outcome, times, most in map(json.loads, done.stdout.splitlines())
    }


def test_every_body_is_answered_in_a_bounded_multiple_of_its_size(measured: Any) -> None:
    assert len(measured) == 2 * len(TEXT) + 2 * len(PLAIN) + len(VECTORS)
    too_much = {name: found for name, found in measured.items() if found[1] > found[2]}
    assert too_much == {}


def test_much_that_is_neither_text_nor_bin_is_refused_before_it_is_read(measured: Any) -> None:
    found = {name: measured[f"much: {name}"][0] for name in PLAIN}
    assert set(found.values()) <= {"body_too_large", "invalid_field", "malformed_body"}
    assert found["ids"] == found["spans"] == found["smallest items"] == "body_too_large"


def test_very_many_lists_and_objects_in_json_are_refused_before_they_are_read(
    measured: Any,
) -> None:
    many = (
        "arrays for items",
        "objects for items",
        "spans",
        "tools",
        "options",
        "an unknown field",
        "depth",
    )
    found = {name: measured[f"much: {name} as JSON"] for name in many}
    assert {outcome for outcome, _, _ in found.values()} == {"body_too_large"}
    assert max(times for _, times, _ in found.values()) < 3


def test_much_text_and_bin_is_taken(measured: Any) -> None:
    assert {measured[f"much: {name}"][0] for name in VECTORS} == {"taken"}


def refuse(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        MSGPACK.parse(RewardsRequest, body)
    return caught.value


def test_the_limit_is_named_and_counts_what_is_not_packed() -> None:
    body = packed_item(
        response=msgspec.msgpack.encode(bytes(MAX_PLAIN_BYTES)),
        mask=array(b"\x01", MAX_VECTOR_VALUES),
    )
    assert len(MSGPACK.parse(RewardsRequest, body).items[0].mask or ()) == MAX_VECTOR_VALUES
    numbers = array(b"\xcc\x01", MAX_PLAIN_BYTES // 4)
    names = ("response", "mask", "policy_logprobs", "ref_logprobs")
    error = refuse(packed_item(**dict.fromkeys(names, numbers)))
    assert (error.status, error.code) == (413, "body_too_large")
    assert f"the limit is {MAX_PLAIN_BYTES}: send vectors as `bin`" in error.message


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (packed({"scorer": b"\xa1x"}) + b"\x90" * MAX_PLAIN_BYTES, 400, None),
        (packed({"scorer": msgspec.msgpack.encode("a" * MAX_PLAIN_BYTES)}), 422, "items"),
        (packed({"items": array(b"\x90", MAX_PLAIN_BYTES)}), 413, "items"),
        (packed({"items": array(b"\x91\xc0", 2**17)}), 422, "items"),
        (packed({"items": b"\x07", "zzz": array(b"\x90", MAX_PLAIN_BYTES)}), 422, "items"),
        (packed_item(response=b"\xdb\xff\xff\xff\xff" + b"a" * MAX_PLAIN_BYTES), 400, None),
        (packed_item(response=msgspec.msgpack.encode("a" * MAX_PLAIN_BYTES))[:-1], 400, None),
        (b"\x91" * MAX_PLAIN_BYTES * 2, 400, None),
        (b"\x81\xa1a" * MAX_PLAIN_BYTES, 400, None),
    ],
    ids=[
        "more than a map",
        "no items",
        "arrays",
        "fewer arrays",
        "a number",
        "truncated text",
        "truncated item",
        "depth",
        "depth of maps",
    ],
)
def test_a_large_body_that_is_no_request_is_refused(
    body: bytes, status: int, param: str | None
) -> None:
    error = refuse(body)
    assert (error.status, error.param) == (status, param)
    assert len(error.message) < 200


@pytest.mark.parametrize("num_keys", [1000, 1001])
def test_of_a_thousand_wrong_entries_the_first_is_named_and_of_more_their_number(
    num_keys: int,
) -> None:
    body = json.dumps(
        {
            "scorer": "x",
            "items": [{"prompt": "p", "response": "r"}],
            **dict.fromkeys(map(str, range(num_keys))),
        }
    )
    with pytest.raises(RequestError) as caught:
        JSON.parse(RewardsRequest, body.encode())
    assert caught.value.status == 422
    assert caught.value.param == ("0" if num_keys == 1000 else None)
