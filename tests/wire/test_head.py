"""The head of a request: what it is for, without a look at its items."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenreward.errors import BodyTooLarge, RequestError
from tokenreward.wire import RewardsRequest
from tokenreward.wire.head import read_head
from tokenreward.wire.media import JSON, MSGPACK, Media

ITEM = {"prompt": "a", "response": "b"}
MEDIA = pytest.mark.parametrize("media", [JSON, MSGPACK], ids=["json", "msgpack"])


@MEDIA
@pytest.mark.parametrize("names", [{"scorer": "one"}, {"scorers": ["one", "two"]}])
def test_scorers_options_and_credit_are_read_and_items_are_not(
    media: Media, names: dict[str, Any]
) -> None:
    body = {**names, "items": "no items", "options": {"a": [1]}, "credit": None, "unknown": 1}
    head = read_head(media.dump(body), media)
    assert head.names == ["one", "two"][: len(head.names)]
    assert (head.scorer, head.scorers) == (names.get("scorer"), names.get("scorers"))
    assert (head.options, head.credit) == ({"a": [1]}, None)


@MEDIA
@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"items": [ITEM]},
        {"scorer": 3, "items": [ITEM]},
        {"scorers": [], "items": [ITEM]},
        {"scorers": ["a", 1], "items": [ITEM]},
        {"scorer": "a", "scorers": ["b"], "items": [ITEM]},
    ],
    ids=repr,
)
def test_a_body_that_does_not_say_for_whom_it_is_is_refused_as_parsing_refuses_it(
    media: Media, content: Any
) -> None:
    body = media.dump(content)
    errors = []
    for read in (lambda: read_head(body, media), lambda: media.parse(RewardsRequest, body)):
        with pytest.raises(RequestError) as caught:
            read()
        errors.append(caught.value.detail())
    assert errors[0] == errors[1]


@pytest.mark.parametrize("body", [b"", b"{", b'{"scorer": "a", "items": [}', b'{"scorer": "\xff"}'])
@MEDIA
def test_a_broken_body_is_refused_as_parsing_refuses_it(media: Media, body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_head(body, media)
    with pytest.raises(RequestError) as expected:
        media.parse(RewardsRequest, body)
    assert caught.value.detail() == expected.value.detail()


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity", "1" * 40])
def test_numbers_that_no_json_has_are_the_deployments_to_judge(number: str) -> None:
    text = f'{{"scorer": "a", "items": [{json.dumps(ITEM)}], "options": {{"v": {number}}}}}'
    assert read_head(text.encode(), JSON).names == ["a"]


def test_a_body_of_too_many_containers_is_refused_before_any_is_made() -> None:
    body = b'{"scorer": "a", "options": {"a": [' + b",".join([b"[]"] * 2**20) + b"]}}"
    with pytest.raises(BodyTooLarge):
        read_head(body, JSON)
