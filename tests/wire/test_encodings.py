"""The two binary encodings: rewards as base64 of little-endian float32, ids as base64 of
little-endian int32."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tokenreward.errors import InvalidField
from tokenreward.wire import decode_ids, decode_rewards, encode_ids, encode_rewards

BITS = arrays.arrays(np.uint32, st.integers(0, 20), elements=st.integers(0, 2**32 - 1))
INT32 = st.integers(-(2**31), 2**31 - 1)


@given(BITS)
def test_rewards_survive_base64_bit_for_bit(bits: np.ndarray) -> None:
    rewards = bits.view(
        np.float32
    )  # any pattern: denormals, infinities, signalling NaNs, minus zero
    decoded = decode_rewards(encode_rewards(rewards))
    assert decoded.dtype == np.float32
    assert decoded.view(np.uint32).tolist() == bits.tolist()


def test_rewards_are_little_endian_float32() -> None:
    denormal = float(np.finfo(np.float32).smallest_subnormal)
    values = [1.0, -2.5, denormal, -0.0]
    assert base64.b64decode(encode_rewards(np.array(values, np.float32))) == struct.pack(
        "<4f", *values
    )


@pytest.mark.parametrize("dtype", [">f4", "<f4"])
def test_rewards_of_either_byte_order_and_any_stride_encode_alike(dtype: str) -> None:
    values = np.arange(10, dtype=np.float32)
    assert encode_rewards(values.astype(dtype)[::-2]) == encode_rewards(
        np.array([9, 7, 5, 3, 1], np.float32)
    )


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_rewards_as_a_json_list_decode_to_the_same_float32(values: list[float]) -> None:
    assert decode_rewards(values).tolist() == values
    assert decode_rewards(values).dtype == np.float32


def test_decoded_rewards_may_be_written_to() -> None:
    decoded = decode_rewards(encode_rewards(np.ones(2, np.float32)))
    decoded[0] = 3


@pytest.mark.parametrize(
    "text", ["AA", "AAAA", "AAAAA", "AAAA\nAAA", "*" * 8, "é", "AAAAAAA", "AAAAAA", "\ud800AAA"]
)
def test_broken_base64_rewards_raise_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whose message is the standard library's
        decode_rewards(text)


@given(st.lists(INT32))
def test_ids_survive_base64(ids: list[int]) -> None:
    packed = encode_ids(ids)
    decoded = decode_ids(packed, param="p")
    assert decoded.tolist() == ids
    assert decoded.dtype == np.int64
    assert base64.b64decode(packed["ids_b64"]) == struct.pack(f"<{len(ids)}i", *ids)


@given(st.lists(INT32))
def test_a_list_of_ids_and_its_base64_decode_alike(ids: list[int]) -> None:
    assert decode_ids(ids, param="p").tolist() == ids
    assert decode_ids(ids, param="p").dtype == np.int64


@pytest.mark.parametrize(
    "ids",
    [
        [1.5],
        [1.0],
        [2**31],
        [-(2**31) - 1],
        np.array([2**32 + 5]),
        np.array([2**31], np.uint32),
        [True],
        ["3"],
    ],
    ids=str,
)
def test_ids_that_are_not_32_bit_integers_are_refused_and_not_cut(ids: Any) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        encode_ids(ids)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64, ">i4"])
def test_ids_of_any_integer_type_encode_alike(dtype: Any) -> None:
    assert encode_ids(np.array([0, 1, 127], dtype)) == encode_ids([0, 1, 127])


@pytest.mark.parametrize(
    "text", ["AA", "AAA=", "AAAAAA", "AAAAAAA=", "not base64!", "é", "AAAA AAA="]
)
def test_broken_base64_ids_are_an_invalid_field_that_quotes_nothing(text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        decode_ids({"ids_b64": text}, param="items[3].response")
    assert caught.value.param == "items[3].response.ids_b64"
    assert text not in caught.value.message.replace("`items[3].response.ids_b64`", "")
