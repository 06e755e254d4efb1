"""Requests and replies as msgpack: what JSON would be taken for or refused for, and `bin` for
vectors of numbers."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tokenreward.errors import InvalidField, MalformedBody, RequestError
from tokenreward.wire import (
    RewardsRequest,
    decode_ids,
    decode_rewards,
    encode_ids,
    parse_json,
    parse_reply,
    read_reply,
)
from tokenreward.wire.msgpack import pack, parse_msgpack, unpack

INT32 = st.integers(-(2**31), 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
SECRET = "the caller's own words"


def request(**fields: Any) -> dict[str, Any]:
    return {"scorer": "rm", "items": [{"prompt": "p", "response": "r"}], **fields}


def item(**fields: Any) -> dict[str, Any]:
    return request(
        items=[{"prompt": "p", "response": "r"}, {"prompt": "p", "response": "r", **fields}]
    )


def int32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def float32(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def parsed(content: Any) -> Any:
    return parse_msgpack(RewardsRequest, msgspec.msgpack.encode(content)).items[-1]


def refuse(content: Any) -> RequestError:
    """The error that these objects, or these bytes, are refused with."""
    body = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    with pytest.raises(RequestError) as caught:
        parse_msgpack(RewardsRequest, body)
    return caught.value


# Taken: as the same JSON, and `bin` as the list it stands for.


@pytest.mark.parametrize(
    "content",
    [
        request(),
        request(
            options={"a": {"b": [1, 2.5, None, True, "x"]}},
            credit={"kl": {"coef": 0.1}},
            min_version=3,
        ),
        request(
            scorer=None, scorers=["a", "b"], combine={"a": 1, "b": -0.5}, encoding_format="base64"
        ),
        item(prompt=[{"role": "user", "content": "x", "name": "n"}], tools=[{"a": {"b": 1}}]),
        item(prompt=[5, 0, 7], response={"ids_b64": "BQAAAA=="}),
        item(
            prompt="",
            response="äöü",
            spans=[[0, 1], [1, 3]],
            mask=[1, True],
            policy_logprobs=[0, -0.1],
        ),
        item(score=1.5, finished=False),
    ],
)
def test_the_same_objects_parse_as_json_and_as_msgpack_alike(content: Any) -> None:
    taken = parse_msgpack(RewardsRequest, pack(content))
    assert taken == parse_json(RewardsRequest, json.dumps(content).encode())


@given(st.lists(INT32))
@pytest.mark.parametrize("field", ["prompt", "response"])
def test_ids_may_be_little_endian_int32(field: str, ids: list[int]) -> None:
    given = getattr(parsed(item(**{field: int32(*ids)})), field)
    assert decode_ids(given, param="p").tolist() == ids
    assert decode_ids(given, param="p").dtype == np.int64


@given(st.lists(FLOAT32))
@pytest.mark.parametrize("field", ["policy_logprobs", "ref_logprobs"])
def test_log_probs_may_be_little_endian_float32(field: str, values: list[float]) -> None:
    taken = getattr(parsed(item(**{field: float32(*values)})), field)
    assert taken.tolist() == values


def test_spans_may_be_pairs_and_a_mask_flags_of_little_endian_int32() -> None:
    taken = parsed(item(spans=int32(0, 1, 2, 3, 4, 5), mask=int32(1, 0, 0)))
    assert taken.spans.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert taken.mask.tolist() == [1, 0, 0]
    assert (len(taken.spans), len(taken.mask)) == (3, 3)


@pytest.mark.parametrize(
    "field", ["prompt", "response", "spans", "mask", "policy_logprobs", "ref_logprobs"]
)
def test_empty_bin_is_an_empty_vector(field: str) -> None:
    assert len(getattr(parsed(item(**{field: b""})), field)) == 0


# Refused: as the same JSON.


@pytest.mark.parametrize(
    ("binary", "listed"),
    [
        (
            item(policy_logprobs=float32(0.0, float("nan"))),
            item(policy_logprobs=[0.0, float("nan")]),
        ),
        (
            item(ref_logprobs=float32(1, 2, float("-inf"))),
            item(ref_logprobs=[1.0, 2.0, float("-inf")]),
        ),
        (item(mask=int32(1, 2)), item(mask=[1, 2])),
        (item(mask=int32(-1)), item(mask=[-1])),
        (item(response=int32(1), spans=int32(0, 1)), item(response=[1], spans=[[0, 1]])),
        (item(response=int32(1), finished=True), item(response=[1], finished=True)),
        (item(prompt=int32(1), tools=[{}]), item(prompt=[1], tools=[{}])),
    ],
)
def test_bin_is_refused_as_the_list_that_it_stands_for(binary: Any, listed: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse_json(RewardsRequest, json.dumps(listed).encode())
    error = refuse(binary)
    assert (type(error), error.detail()) == (type(caught.value), caught.value.detail())


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (item(prompt=b"\0" * 3), "items[1].prompt"),
        (item(response=b"\0" * 5), "items[1].response"),
        (item(spans=int32(0, 1, 1)), "items[1].spans"),
        (item(mask=b"\x01"), "items[1].mask"),
        (item(policy_logprobs=b"\0" * 6), "items[1].policy_logprobs"),
    ],
)
def test_bin_that_is_no_whole_number_of_entries_is_an_invalid_field(
    content: Any, param: str
) -> None:
    error = refuse(content)
    assert type(error) is InvalidField
    assert (error.status, error.param) == (422, param)
    assert "little-endian" in error.message


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (request(scorer=b"rm"), "scorer"),
        (request(items=b""), "items"),
        (request(items=[b""]), "items[0]"),
        (request(options={"a": {"b": [1, b"x"]}}), "options.a.b[1]"),
        (request(options={"a": {"b": [1, 2, {"c": b"x"}]}}), "options.a.b[2].c"),
        (request(credit={"name": b"last"}), "credit.name"),
        (item(score=float32(1)), "items[1].score"),
        (item(prompt=[{"role": "user", "content": b"x"}]), "items[1].prompt[0].content"),
        (item(prompt=[{"role": "user", "content": "x", "name": b"x"}]), "items[1].prompt[0].name"),
        (item(prompt=[{"role": "user"}], tools=[{"a": b"x"}]), "items[1].tools[0].a"),
        (item(prompt={"ids_b64": b"BQAAAA=="}), "items[1].prompt.ids_b64"),
        (item(response={"ids_b64": b"BQAAAA=="}), "items[1].response.ids_b64"),
        (item(response=[b"\0\0\0\0"]), "items[1].response[0]"),
        (item(prompt=[1, b"\0\0\0\0"]), "items[1].prompt[1]"),
        (item(spans=[b"\0" * 8]), "items[1].spans[0]"),
        (item(zzz=b""), "items[1].zzz"),
    ],
)
def test_bin_anywhere_else_is_an_invalid_field(content: Any, param: str) -> None:
    error = refuse(content)
    assert type(error) is InvalidField
    assert (error.status, error.param) == (422, param)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"{}",
        pack(request()) + b"\x00",
        pack(request())[:-1],
        b"\xdd\xff\xff\xff\xff",  # an array of four billion entries
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\x0f\xff\xff\xff" * 1000,
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\x81\xa6scorer\xa1\xff",  # not UTF-8
        b"\x81\xa6scorer\xa3\xed\xa0\x80",  # a lone surrogate
        b"\x81\xa6scorer\xd4\x05a",  # an extension
        b"\x81\xa6scorer\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\x81\x01\x02",
        b"\x81\xc0\x02",
        b"\x81\xc4\x06scorer\xa2rm",
        b"\x81\x91\x01\x02",
        b"\x81\x81\x01\x02\x03",
        msgspec.msgpack.encode(request(options={"a": {1: 2}})),
        msgspec.msgpack.encode(item(tools=[{b"a": 2}])),
        msgspec.msgpack.encode({**request(), 3: 1}),
    ],
    ids=repr,
)
def test_what_is_not_jsons_kind_of_msgpack_is_a_malformed_body(body: bytes) -> None:
    error = refuse(body)
    assert type(error) is MalformedBody
    assert (error.status, error.param, error.retryable) == (400, None, False)
    assert len(error.message) < 200


@pytest.mark.parametrize("body", [[1, 2], "text", None, 3, 2.5, True, b"bin"])
def test_msgpack_that_is_no_map_is_a_malformed_body(body: Any) -> None:
    assert type(refuse(pack(body))) is MalformedBody


@pytest.mark.parametrize("depth", [100, 250, 900])
@pytest.mark.parametrize(
    "wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["arrays", "maps"]
)
def test_a_body_may_nest_as_deep_as_json_may(depth: int, wrap: Any) -> None:
    content: Any = 1
    for _ in range(depth):
        content = wrap(content)
    bodies = (
        (parse_json, json.dumps(request(options={"a": content})).encode()),
        (parse_msgpack, pack(request(options={"a": content}))),
    )
    taken = []
    for parse, body in bodies:
        try:
            parse(RewardsRequest, body)
            taken.append(200)
        except RequestError as error:
            taken.append(error.status)
    assert taken == ([200, 200] if depth == 100 else [400, 400])


@pytest.mark.parametrize(
    "content",
    [
        request(encoding_format=SECRET),
        request(items=[{"prompt": SECRET}]),
        item(prompt=SECRET.encode() + b"!!!"),
        item(policy_logprobs=SECRET.encode()),
        item(response=SECRET, tools=[SECRET.encode()]),
        request(options={"a": SECRET.encode()}),
        pack(SECRET),
        pack(request(scorer=SECRET))[:-1],
        pack(request(scorer=SECRET)).replace(b"words", b"wor\xff\xff"),
    ],
)
def test_a_refusal_never_quotes_what_the_caller_wrote(content: Any) -> None:
    assert "caller" not in json.dumps(refuse(content).detail())


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def outcome(parse: Any, body: bytes) -> Any:
    """What a body parses into, or what it is refused with and where. (pydantic calls a JSON array a
    list elsewhere.)"""
    try:
        return parse(RewardsRequest, body)
    except RequestError as error:
        return type(error), error.param


FIELDS = st.sampled_from(sorted(RewardsRequest.model_fields))
ITEM_FIELDS = st.sampled_from(
    ["prompt", "response", "spans", "mask", "policy_logprobs", "score", "tools", "finished"]
)


@given(field=FIELDS, item_field=ITEM_FIELDS, value=PLAIN, own=PLAIN)
@example(field="items", item_field="mask", value=[None], own=None)
def test_any_plain_value_in_any_field_is_taken_or_refused_as_in_json(
    field: str, item_field: str, value: Any, own: Any
) -> None:
    for content in (request(**{field: value}), item(**{item_field: own})):
        assert outcome(parse_msgpack, pack(content)) == outcome(
            parse_json, json.dumps(content).encode()
        )


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5)
            | st.integers().filter(lambda i: abs(i) < 2**60)
            | st.binary(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
EVERY_FIELD = st.sampled_from(
    ["prompt", "response", "spans", "mask", "policy_logprobs", "ref_logprobs", "score", "tools"]
)


@given(field=FIELDS, item_field=EVERY_FIELD, value=ANY, own=ANY)
def test_any_msgpack_value_in_any_field_is_taken_or_is_a_refusal(
    field: str, item_field: str, value: Any, own: Any
) -> None:
    for content in (request(**{field: value}), item(**{item_field: own})):
        found = outcome(parse_msgpack, msgspec.msgpack.encode(content))
        assert isinstance(found, RewardsRequest) or found[0].status in (400, 422)
        if isinstance(found, RewardsRequest):
            assert b"\xc4" not in pack(
                [found.options, found.credit, found.items[-1].tools]
            )  # no bin slips through


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    found = outcome(parse_msgpack, body)
    assert isinstance(found, RewardsRequest) or found[0].status in (400, 422)


@given(st.data())
def test_a_request_with_any_bytes_changed_is_a_request_or_a_refusal(data: st.DataObject) -> None:
    content = item(
        prompt=int32(1, 2), response="abc", spans=int32(0, 1, 1, 3), policy_logprobs=float32(0.5, 1)
    )
    body = bytearray(pack({**content, "options": {"a": [1, {"b": 2.5}]}}))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    found = outcome(parse_msgpack, bytes(body))
    assert isinstance(found, RewardsRequest) or found[0].status in (400, 422)


# Replies and plain objects.


@given(arrays.arrays(np.uint32, st.integers(0, 20), elements=st.integers(0, 2**32 - 1)))
def test_rewards_cross_bit_for_bit(bits: np.ndarray) -> None:
    rewards = unpack(pack({"rewards": bits.view(np.float32)}))["rewards"]
    assert isinstance(rewards, bytes)
    decoded = decode_rewards(rewards)
    assert decoded.dtype == np.float32
    assert decoded.view(np.uint32).tolist() == bits.tolist()
    decoded[...] = 0  # a caller may write to them


def test_bin_is_little_endian_of_either_byte_order_and_any_stride() -> None:
    values = np.arange(10, dtype=np.float32)
    for dtype in ("<f4", ">f4"):
        assert unpack(pack(values.astype(dtype)[::-2])) == float32(9, 7, 5, 3, 1)
    assert unpack(pack(np.array([[0, 2], [2, 5]], ">i4"))) == int32(0, 2, 2, 5)


@pytest.mark.parametrize(
    "value",
    [
        np.array([0.1, 1e300]),
        np.array([2**40]),
        np.float64(0.1),
        np.float32(0.5),
        np.int64(7),
        np.array([], np.float64),
    ],
)
def test_what_bin_would_round_crosses_as_numbers(value: Any) -> None:
    assert unpack(pack({"a": value}))["a"] == value.tolist()


def test_a_reply_reads_alike_from_json_and_msgpack() -> None:
    head = {"id": "x", "scorer": "rm", "usage": {"prompt_tokens": 1, "response_tokens": 2}}
    head["timing"] = {"queue_s": 0.1, "tokenize_s": 0.0, "compute_s": 0.2}
    rewards = np.array([0.1, -2.5], np.float32)
    one = {"index": 0, "score": 0.5, "error": None, "step_scores": [0.5], "step_ids": [0, 0]}
    packed = read_reply(unpack(pack({**head, "items": [{**one, "rewards": rewards}]})))
    text = json.dumps({**head, "items": [{**one, "rewards": rewards.tolist()}]})
    listed = parse_reply(text)
    assert decode_rewards(packed.items[0].rewards or b"").tolist() == rewards.tolist()
    blank = {"rewards": None}
    assert replace(packed.items[0], **blank) == replace(listed.items[0], **blank)


@pytest.mark.parametrize("value", [b"\0" * 3, b"\0" * 7])
def test_rewards_of_a_broken_length_raise_value_error(value: bytes) -> None:
    with pytest.raises(ValueError, match="multiple"):
        decode_rewards(value)


def test_what_has_no_place_in_a_body_raises() -> None:
    with pytest.raises(TypeError, match="object"):
        pack({"a": object()})


def test_ids_of_all_three_encodings_are_the_same() -> None:
    ids = [5, 0, 2**31 - 1]
    forms = [parsed(item(response=form)).response for form in (ids, encode_ids(ids), int32(*ids))]
    assert [decode_ids(form, param="p").tolist() for form in forms] == [ids] * 3
