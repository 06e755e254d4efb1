"""Which of the two media a body is read as, and which one it is answered in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tokenreward.errors import MalformedBody
from tokenreward.wire.media import JSON, MSGPACK, Media, answer_media, media_of

JSON_TYPE, MSGPACK_TYPE = "application/json", "application/msgpack"


@pytest.mark.parametrize(
    ("given", "media"),
    [
        (None, JSON),
        ("", JSON),
        (JSON_TYPE, JSON),
        ("Application/JSON; charset=utf-8", JSON),
        (MSGPACK_TYPE, MSGPACK),
        (" application/MSGPACK ;x=y", MSGPACK),
    ],
)
def test_the_content_type_says_what_a_body_is_read_as(given: str | None, media: Media) -> None:
    assert media_of({} if given is None else {"content-type": given}) is media


@pytest.mark.parametrize(
    "given",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/x-msgpack",
        "application/jsonx",
        "*/*",
    ],
)
def test_another_content_type_is_a_malformed_body_that_names_the_two_and_is_answered_in_json(
    given: str,
) -> None:
    with pytest.raises(MalformedBody) as caught:
        media_of({"content-type": given})
    assert JSON_TYPE in caught.value.message
    assert MSGPACK_TYPE in caught.value.message
    assert caught.value.message.endswith(f", got `{given}`")
    assert answer_media({"content-type": given}) is JSON


@pytest.mark.parametrize("sent", [JSON, MSGPACK])
@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, None),
        ("", None),
        ("*/*", None),
        ("text/html", None),
        (JSON_TYPE, JSON),
        (MSGPACK_TYPE, MSGPACK),
        ("text/html, application/msgpack;q=0.9, */*", MSGPACK),
        ("APPLICATION/JSON", JSON),
        (f"{JSON_TYPE}, {MSGPACK_TYPE}", None),
    ],
)
def test_the_answer_is_what_accept_alone_names_else_what_was_sent(
    sent: Media, accept: str | None, media: Media | None
) -> None:
    headers = {"content-type": sent.name} | ({} if accept is None else {"accept": accept})
    assert answer_media(headers) is (media or sent)


def test_a_request_without_headers_is_answered_in_json() -> None:
    assert answer_media({}) is JSON


@pytest.mark.parametrize("media", [JSON, MSGPACK])
def test_what_is_dumped_can_be_loaded(media: Media) -> None:
    content = {"a": [1, 2.5, None, True, "ä"], "b": {"c": "x" * 300}}
    assert media.load(media.dump(content)) == content


@pytest.mark.parametrize("media", [JSON, MSGPACK])
@pytest.mark.parametrize("body", [b"", b"\xc1", b'{"a":', b"\x91", b"\xdd\xff\xff\xff\xff"])
def test_what_cannot_be_loaded_raises_value_error(media: Media, body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whose message is a library's
        media.load(body)


def test_json_writes_the_shortest_number_that_is_the_float32() -> None:
    numbers = np.array([0.1, -2.7182817, 1e-8, 16777216], np.float32)
    text = JSON.dump({"rewards": numbers}).decode()
    assert text.startswith('{"rewards":[0.1,-2.7182817,')
    assert np.array(json.loads(text)["rewards"], np.float32).tolist() == numbers.tolist()
