"""What an item is checked for before it travels, and what is not done twice to do so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenreward_client import BadArgument, items, options
from tokenreward_client.call import Call
from tokenreward_client.items import check_item, encode_item, encode_items


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"prompt": "p"}, "response"),
        ({"prompt": "p", "response": "r", "mask": [1, 2]}, "mask[1]"),
        ({"prompt": "p", "response": [1.5]}, "response"),
        ({"prompt": "p", "response": {"ids_b64": "?"}}, "response.ids_b64"),
        ({"prompt": "p", "response": [1, 2], "mask": [1]}, None),
        ({"prompt": "p", "response": "\ud800"}, None),
        ("text", None),
    ],
)
def test_check_of_one_item_names_the_field_within_it(item: Any, param: str | None) -> None:
    with pytest.raises(BadArgument) as caught:
        check_item(item)
    assert caught.value.param == param


def test_item_that_can_be_sent_passes_the_check() -> None:
    check_item(("p", [1, 2, 3]))


@pytest.mark.parametrize("ids", [[5, 6, 7], np.array([5, 6, 7], dtype=np.uint16)])
def test_ids_are_counted_without_reading_their_base64_again(
    ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "decode_ids", None)
    _, nums_units, has_ids = encode_items([{"prompt": [1], "response": ids, "mask": [1, 1, 0]}])
    assert (nums_units, has_ids) == ([3], True)


def test_ids_that_come_as_base64_are_counted() -> None:
    _, nums_units, has_ids = encode_items([("p", {"ids_b64": "BQAAAAYAAAA="})])
    assert (nums_units, has_ids) == ([2], True)


def test_options_are_checked_without_a_made_up_item(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = []
    parse_json = options.parse_json

    def spy(model: Any, body: bytes) -> Any:
        bodies.append(body)
        return parse_json(model, body)

    monkeypatch.setattr(options, "parse_json", spy)
    Call([("p", "r")], None, {"credit": {"name": "last"}})
    assert len(bodies) == 1
    assert b"items" not in bodies[0]


def test_arrays_of_messages_are_messages() -> None:
    """Data sets give a list of messages as an array of objects."""
    messages = np.array([{"role": "user", "content": "2+2?"}], dtype=object)
    [content], _, has_ids = encode_items([(messages, "4")])
    assert content == b'{"prompt":[{"role":"user","content":"2+2?"}],"response":"4"}'
    assert not has_ids


@pytest.mark.parametrize("wire", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", ["a", "b"]),
        ("steps", [[0, 1], [1, 2]]),
        ("spans", [[0, 1], [1, 2]]),
        ("prompt", [{"role": "user", "content": "q"}]),
        ("response", [{"role": "assistant", "content": "ab"}]),
        ("tools", [{"type": "function"}]),
    ],
)
def test_a_tuple_is_sent_as_the_list_of_its_entries(field: str, value: Any, wire: Any) -> None:
    item = {"prompt": [{"role": "user", "content": "q"}], "response": "ab"}
    entries = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
    expected = encode_item({**item, field: value}, wire)
    assert encode_item({**item, field: entries}, wire) == expected


def test_number_of_rewards_of_a_whole_sequence_is_not_promised() -> None:
    item = {"prompt": [1, 2], "response": [5, 6, 7], "whole": "sequence"}
    assert encode_items([item, item | {"mask": [1, 1, 0, 1]}])[1] == [None, 4]
