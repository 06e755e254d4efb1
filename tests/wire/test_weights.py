"""The body of a push: what it may say, and what a wrong one is answered with."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenreward.errors import (
    BodyTooLarge,
    InvalidField,
    MalformedBody,
    MalformedJson,
    RequestError,
    UnknownField,
)
from tokenreward.wire.weights import MAX_VERSION, Weights, parse_weights


def push(**fields: Any) -> bytes:
    return json.dumps({"checkpoint": "/runs/7", "version": 7, **fields}).encode()


def refuse(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_weights(body)
    return caught.value


def test_a_push_names_a_checkpoint_and_a_version() -> None:
    assert parse_weights(push()) == Weights(checkpoint="/runs/7", version=7)


def test_a_push_may_name_an_adapter_and_a_reference() -> None:
    weights = parse_weights(push(adapter="/runs/7/lora", reference_checkpoint="org/base"))
    assert (weights.adapter, weights.reference_checkpoint) == ("/runs/7/lora", "org/base")


def test_null_is_the_absence_of_an_adapter_and_of_a_reference() -> None:
    assert parse_weights(push(adapter=None, reference_checkpoint=None)) == parse_weights(push())


NO_NAMES = ("", 7, True, ["/runs/7"], {}, "a\x00b", "a\nb", "\x1b[31m", "a\x7f", "x" * 4097)
NO_VERSIONS = (None, True, "7", 7.0, 7.5, -1, MAX_VERSION + 1, 1e300)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("checkpoint", value) for value in (None, *NO_NAMES)),
        *(("adapter", value) for value in NO_NAMES),
        *(("reference_checkpoint", value) for value in NO_NAMES),
        *(("version", value) for value in NO_VERSIONS),
    ],
)
def test_a_wrong_value_is_refused_at_its_field_and_not_quoted(field: str, value: object) -> None:
    error = refuse(push(**{field: value}))
    assert isinstance(error, InvalidField)
    assert error.param == field
    assert "\x1b" not in error.message
    assert "xxxx" not in error.message


@pytest.mark.parametrize("field", ["checkpoint", "version"])
def test_what_a_push_needs_is_named_when_it_is_missing(field: str) -> None:
    body = json.loads(push())
    del body[field]
    error = refuse(json.dumps(body).encode())
    assert (type(error), error.param) == (InvalidField, field)


@pytest.mark.parametrize("field", ["dtype", "revision", "Version", "model"])
def test_an_unknown_field_is_refused_by_name(field: str) -> None:
    error = refuse(push(**{field: "x"}))
    assert (type(error), error.param) == (UnknownField, field)


def test_the_name_that_other_programs_use_is_told_ours() -> None:
    error = refuse(b'{"model": "/runs/7", "version": 7}')
    assert (type(error), error.param) == (UnknownField, "model")
    assert "`checkpoint`" in error.message


@pytest.mark.parametrize("body", [b"", b"{", b'{"checkpoint": "\\ud800"}', b"\xff", b"NaN["])
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    assert isinstance(refuse(body), MalformedJson)


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"/runs/7"'])
def test_what_is_no_object_is_malformed(body: bytes) -> None:
    assert isinstance(refuse(body), MalformedBody)


def test_a_large_body_is_refused_before_it_is_read() -> None:
    assert isinstance(refuse(b"[" * 70_000), BodyTooLarge)
