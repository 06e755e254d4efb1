"""A request means the same on both wires, to the last bit; msgpack is only for those who have its
library."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.wire import Item, Reply, RewardsRequest, decode_ids, parse_json
from tokenreward.wire.msgpack import pack, parse_msgpack, unpack
from tokenreward_client import BadArgument, BadReply, Client
from tokenreward_client.call import Call
from tokenreward_client.media import WireName, read_body
from tokenreward_client.options import ScoreOptions

JSON: WireName = "json"
MSGPACK: WireName = "msgpack"


def on_both(items: Any, **options: Any) -> tuple[RewardsRequest, RewardsRequest]:
    """The request as the service reads it from either wire."""
    bodies = [
        Call(items, None, ScoreOptions(**options), wire).body(range(len(items)))
        for wire in (JSON, MSGPACK)
    ]
    return parse_json(RewardsRequest, bodies[0]), parse_msgpack(RewardsRequest, bodies[1])


def means(item: Item) -> dict[str, Any]:
    """The item with plain lists for all vectors."""
    fields = {name: getattr(item, name) for name in type(item).model_fields}
    for name, value in fields.items():
        is_messages = name == "prompt" and item.messages is not None
        if name in ("prompt", "response") and not isinstance(value, str) and not is_messages:
            fields[name] = decode_ids(value, param=name).tolist()
        elif isinstance(value, np.ndarray):
            fields[name] = value.tolist()
    return fields


TEXT = {"prompt": "p", "response": "abc"}
ITEMS: list[Any] = [
    ("p", "abc"),
    TEXT,
    Item(prompt="p", response="abc", spans=[[0, 3]], policy_logprobs=[-0.1]),
    {"prompt": [1, 2], "response": np.array([3, 4, 5], np.uint16)},
    {"prompt": {"ids_b64": "BQAAAA=="}, "response": (3, 4)},
    {
        "prompt": [{"role": "user", "content": "x", "n": [1, None]}],
        "response": "",
        "tools": [{"a": {"b": 1.5}}],
    },
    {**TEXT, "spans": [(0, 1), (1, 3)], "mask": [True, 0]},
    {**TEXT, "spans": np.array([[0, 1], [1, 3]]), "mask": np.array([True, False])},
    {**TEXT, "policy_logprobs": [-0.1, -1, -2.5], "ref_logprobs": np.array([0.1, 1e300, 3])},
    {
        **TEXT,
        "policy_logprobs": np.array([-0.1, -1, -2.5], np.float32),
        "ref_logprobs": np.array([1, 2, 3], np.float16),
    },
    {**TEXT, "spans": [], "mask": [], "policy_logprobs": []},
    {**TEXT, "finished": False, "score": 0.1},
]


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_an_item_means_the_same_on_both_wires(item: Any) -> None:
    json, msgpack = on_both([item])
    assert means(json.items[0]) == means(msgpack.items[0])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_log_probs_of_any_precision_arrive_to_the_last_bit(values: list[float]) -> None:
    _, msgpack = on_both([{**TEXT, "policy_logprobs": values}])
    log_probs = msgpack.items[0].policy_logprobs
    assert log_probs is not None
    assert list(log_probs) == values


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({**TEXT, "policy_logprobs": np.array([-1, -2], np.float32)}, "policy_logprobs"),
        ({**TEXT, "ref_logprobs": [-1.5, 2.0]}, "ref_logprobs"),
        ({**TEXT, "spans": [[0, 1], [1, 3]]}, "spans"),
        ({**TEXT, "mask": np.array([1, 0])}, "mask"),
        ({"prompt": "p", "response": [1, 2]}, "response"),
    ],
)
def test_vectors_travel_as_bin(item: Any, field: str) -> None:
    body = unpack(Call([item], None, ScoreOptions(), MSGPACK).body([0]))
    assert isinstance(body["items"][0][field], bytes)


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({**TEXT, "policy_logprobs": [0.5, True]}, "items[0].policy_logprobs[1]"),
        ({**TEXT, "policy_logprobs": np.array([1, np.nan])}, "items[0].policy_logprobs[1]"),
        ({**TEXT, "ref_logprobs": np.array([np.inf], np.float32)}, "items[0].ref_logprobs[0]"),
        ({**TEXT, "ref_logprobs": ["1"]}, "items[0].ref_logprobs[0]"),
        ({**TEXT, "ref_logprobs": [[1.0]]}, "items[0].ref_logprobs[0]"),
        ({**TEXT, "spans": [[0, True]]}, "items[0].spans[0][1]"),
        ({**TEXT, "spans": [[0, 2**31]]}, "items[0].spans[0][1]"),
        ({**TEXT, "spans": [[0, 1, 2]]}, "items[0].spans[0]"),
        ({**TEXT, "spans": [[0, 1], [1]]}, "items[0].spans[1]"),
        ({**TEXT, "spans": [0, 3]}, "items[0].spans[0]"),
        ({**TEXT, "spans": np.array([0, 3])}, "items[0].spans[0]"),
        ({**TEXT, "mask": [1, 2]}, "items[0].mask[1]"),
        ({**TEXT, "mask": np.array([1, -1])}, "items[0].mask[1]"),
        ({**TEXT, "mask": [1.0]}, "items[0].mask[0]"),
        ({**TEXT, "mask": np.array([0.5])}, "items[0].mask[0]"),
        ({**TEXT, "mask": "10"}, "items[0].mask"),
        ({**TEXT, "response": np.array([0.5])}, "items[0].response"),
        ({**TEXT, "response": np.array([[1]])}, "items[0].response"),
        ({**TEXT, "response": np.array([2**31])}, "items[0].response"),
        ({**TEXT, "response": "\ud800"}, "items[0]"),
    ],
)
def test_what_cannot_be_sent_is_refused_alike_on_both_wires(item: Any, param: str) -> None:
    errors = []
    for wire in (JSON, MSGPACK):
        with pytest.raises(BadArgument) as caught:
            Call([item], None, ScoreOptions(), wire)
        errors.append(caught.value.param)
    assert errors == [param, param]


@pytest.mark.parametrize("options", [{"a": {1, 2}}, {"a": (1, 2)}, {"a": np.float64(0.5)}])
def test_options_are_plain_on_both_wires(options: Any) -> None:
    json, msgpack = on_both([TEXT], options=options)
    assert json.options == msgpack.options


@pytest.mark.parametrize("options", [{"a": 2**70}, {"a": object()}, {"a": "\ud800"}])
def test_options_that_msgpack_cannot_hold_are_a_bad_argument(options: Any) -> None:
    with pytest.raises(BadArgument, match="msgpack"):
        Call([TEXT], None, ScoreOptions(options=options), MSGPACK)


@pytest.mark.parametrize("wire", ["xml", "JSON", None, ""])
def test_an_unknown_wire_is_a_bad_argument(wire: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        Client(wire=wire)
    assert caught.value.param == "wire"


def test_without_the_library_the_client_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(BadArgument, match=r"tokenreward\[msgpack\]"):
        Client(wire="msgpack")
    Client(wire="json").close()


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"{}", pack([]), pack({"id": "x"}), pack({"items": b"x"})]
)
def test_a_reply_that_is_none_is_a_bad_reply(content: bytes) -> None:
    with pytest.raises(BadReply, match="not a rewards reply"):
        read_body(content, MSGPACK)


def test_rewards_of_a_broken_length_are_a_bad_reply() -> None:
    call = Call([TEXT], None, ScoreOptions(), MSGPACK)
    timing, usage = (
        dict.fromkeys(("queue_s", "tokenize_s", "compute_s"), 0.0),
        {"prompt_tokens": 1, "response_tokens": 1},
    )
    for rewards, match in ((b"\0" * 6, "float32"), (np.array([np.nan], np.float32), "not finite")):
        reply = {
            "id": "x",
            "items": [{"index": 0, "rewards": rewards, "score": 0.0}],
            "usage": usage,
            "timing": timing,
        }
        assert isinstance(read_body(pack(reply), MSGPACK), Reply)
        with pytest.raises(BadReply, match=match):
            call.read(pack(reply), [0])
