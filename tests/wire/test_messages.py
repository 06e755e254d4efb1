"""A response that is an assistant's message is its text; more than a text is refused by name. What
other programs call a field names the field to use."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.errors import InvalidField, RequestError, UnknownField
from tokenreward.wire import Item, RewardsRequest, parse
from tokenreward_client import BadArgument
from tokenreward_client.items import check_item, encode_item

CALL = {"function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "response",
    [
        {"role": "assistant", "content": "It is 4."},
        [{"role": "assistant", "content": "It is 4.", "tool_calls": None, "annotations": []}],
        {"role": "assistant", "content": [{"type": "text", "text": "It "}, {"text": "is 4."}]},
    ],
)
def test_the_text_of_an_assistants_message_is_the_response(response: Any) -> None:
    item = parse(Item, {"prompt": "2+2?", "response": response, "spans": [[0, 2], [2, 8]]})
    assert item.response == "It is 4."
    text = encode_item({"prompt": "2+2?", "response": "It is 4."})
    assert encode_item({"prompt": "2+2?", "response": response}) == text


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ({"role": "user", "content": "x"}, "has `role` `assistant`"),
        ({"content": "x"}, "has `role` `assistant`"),
        ({"role": "assistant", "content": None}, "has no `content`"),
        ({"role": "assistant", "content": "x", "tool_calls": [CALL]}, "`tool_calls` beside"),
        ({"role": "assistant", "content": "x", "reasoning_content": "y"}, "`reasoning_content` be"),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "type `image_url` cannot"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "2 messages"),
        ({"text": "x"}, "an assistant message"),
    ],
)
def test_a_message_that_is_more_than_a_text_is_refused_by_name(response: Any, why: str) -> None:
    with pytest.raises(InvalidField, match=why) as caught:
        parse(RewardsRequest, {"scorer": "a", "items": [{"prompt": "p", "response": response}]})
    assert caught.value.param == "items[0].response"
    with pytest.raises(BadArgument, match=why):
        check_item({"prompt": "p", "response": response})


@pytest.mark.parametrize(
    ("body", "param", "why"),
    [
        ({"items": [{"prompt": "p", "completion": "r"}]}, "items[0].completion", "`response`"),
        ({"items": [{"prompt": "p", "chosen": "a", "rejected": "b"}]}, "items[0].chosen", "item"),
        ({"items": [{"messages": []}]}, "items[0].messages", "`response`.*`prompt`"),
        ({"query": ["q"], "prompts": ["p"]}, "query", "`prompt`, in an entry of `items`"),
        ({"items": [{"prompt": "p", "response": "r"}], "model": "m"}, "model", "`scorer`"),
    ],
)
def test_a_field_of_another_program_names_the_one_to_use(body: Any, param: str, why: str) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        parse(RewardsRequest, {"scorer": "a", **body})
    assert isinstance(caught.value, UnknownField)
    assert caught.value.param == param
