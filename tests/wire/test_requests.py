"""What a request may look like: every form the contract promises parses, and means what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pydantic import ValidationError

from tokenreward.errors import InvalidField, UnknownField
from tokenreward.wire import Credit, Item, Kl, RewardsRequest, parse, parse_json

# Section 4 of the contract, comments and all.
CONTRACT_EXAMPLE = """
    {"scorer": "attention_dense",
     "items": [
       {"prompt": [{"role": "user", "content": "2+2?"}],
                                                   // or a raw string, or ids, or {"ids_b64": "..."}
        "response": "It is 4.",                    // or ids, or {"ids_b64": "..."}
        "finished": true,                          // text only
        "spans": [[0, 2], [2, 5], [5, 8]],         // optional, text only: units of the caller
        "mask": [1, 1, 1],                         // optional, one per unit: 0 = read, not scored
        "policy_logprobs": [-0.1, -0.3, -0.2],     // optional, one per unit of the returned vector
        "ref_logprobs": null, "score": null}],     // optional: see kl above; score for attention
     "options": {}, "credit": {"name": "attention", "beta": 0.8,
                               "kl": {"coef": 0.05, "estimator": "k1", "reference": "sft"}},
     "encoding_format": "float",                   // or "base64": little-endian float32
     "return_tokens": false, "min_version": null}
"""


def request(**fields: Any) -> RewardsRequest:
    body = {"scorer": "rm", "items": [{"prompt": "p", "response": "r"}], **fields}
    return parse_json(RewardsRequest, json.dumps(body).encode())


def item(**fields: Any) -> Item:
    return request(items=[{"prompt": "p", "response": "r", **fields}]).items[0]


def keyed(**fields: Any) -> RewardsRequest:
    return request(scorer=None, scorers=["rm", "lm"], **fields)


def test_the_contracts_example_parses_into_what_it_says() -> None:
    parsed = parse_json(RewardsRequest, re.sub(r"//.*", "", CONTRACT_EXAMPLE).encode())
    only = parsed.items[0]
    assert parsed.names == ["attention_dense"]
    assert parsed.encoding_format == "float"
    assert isinstance(only.prompt, list)
    assert [message.model_dump() for message in only.prompt] == [
        {"role": "user", "content": "2+2?"}
    ]
    assert (only.response, only.finished) == ("It is 4.", True)
    assert (only.spans, only.mask) == ([[0, 2], [2, 5], [5, 8]], [1, 1, 1])
    assert only.policy_logprobs == [-0.1, -0.3, -0.2]
    assert (only.ref_logprobs, only.score) == (None, None)
    credit = parsed.credit_of("attention_dense")
    assert (credit.name, credit.beta, credit.gamma) == ("attention", 0.8, None)
    assert credit.kl == Kl(coef=0.05, estimator="k1", reference="sft")


def test_a_minimal_request_has_the_contracts_defaults() -> None:
    parsed = request()
    assert (parsed.encoding_format, parsed.return_tokens, parsed.min_version) == (
        "float",
        False,
        None,
    )
    assert (parsed.options, parsed.credit, parsed.combine) == ({}, {}, None)
    only = parsed.items[0]
    assert (only.finished, only.spans, only.mask, only.tools, only.chat_template_kwargs) == (
        None,
        None,
        None,
        None,
        {},
    )
    credit = parsed.credit_of("rm")
    assert credit == Credit()
    assert (credit.scale, credit.shift, credit.clip, credit.kl) == (1.0, 0.0, None, None)
    assert (credit.name, credit.beta, credit.gamma) == (
        None,
        None,
        None,
    )  # set ones are refused with other rules


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("raw text", "raw text"),
        ("", ""),
        ([5, 0, 7], [5, 0, 7]),
        ([], []),
        ([-(2**31), 2**31 - 1], [-(2**31), 2**31 - 1]),
        ({"ids_b64": "BQAAAA=="}, {"ids_b64": "BQAAAA=="}),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "response"])
def test_text_and_ids_of_both_forms_are_taken_as_they_are(
    field: str, given: Any, expected: Any
) -> None:
    assert getattr(item(**{field: given}), field) == expected


def test_messages_keep_keys_that_only_a_chat_template_knows() -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": [{"type": "text", "text": "4"}], "name": "sum"},
    ]
    prompt = item(prompt=messages).prompt
    assert isinstance(prompt, list)
    assert [message.model_dump() for message in prompt] == messages  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["\u0000", "👩‍👩‍👧", "a\r\nb", "\ufeff", "𐍈" * 3])
def test_any_valid_unicode_text_arrives_unchanged(text: str) -> None:
    taken = item(prompt=text, response=text)
    assert (taken.prompt, taken.response) == (text, text)


def test_a_mask_takes_zero_one_true_and_false() -> None:
    mask = item(mask=[0, 1, False, True]).mask
    assert mask == [0, 1, 0, 1]
    assert [type(flag) for flag in mask or ()] == [int] * 4


def test_an_integer_is_a_valid_log_prob() -> None:
    assert item(policy_logprobs=[0, -1]).policy_logprobs == [0.0, -1.0]


def test_requests_cannot_be_changed_once_they_are_parsed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        request().min_version = 3  # type: ignore[misc]


def test_python_objects_parse_as_the_same_json_does() -> None:
    body = {"scorer": "rm", "items": [{"prompt": [1, 2], "response": "r", "mask": [True]}]}
    assert parse(RewardsRequest, body) == parse_json(RewardsRequest, json.dumps(body).encode())


def test_with_scorer_options_and_credit_are_that_scorers() -> None:
    parsed = request(options={"alpha": 2}, credit={"name": "last", "scale": 3})
    assert parsed.options_of("rm") == {"alpha": 2}
    assert parsed.credit_of("rm") == Credit(name="last", scale=3.0)


def test_with_scorers_options_and_credit_are_keyed_by_name() -> None:
    parsed = keyed(options={"lm": {"alpha": 2}}, credit={"rm": {"name": "last"}})
    assert parsed.names == ["rm", "lm"]
    assert parsed.options_of("lm") == {"alpha": 2}
    assert parsed.options_of("rm") == {}
    assert parsed.credit_of("rm") == Credit(name="last")
    assert parsed.credit_of("lm") == Credit()


@pytest.mark.parametrize("field", ["options", "credit"])
def test_an_entry_for_a_scorer_that_is_not_asked_for_is_an_unknown_field(field: str) -> None:
    parsed = keyed(**{field: {"sft": {}}})
    with pytest.raises(UnknownField) as caught:
        parsed.options_of("rm") if field == "options" else parsed.credit_of("rm")
    assert caught.value.param == f"{field}.sft"


@pytest.mark.parametrize("field", ["options", "credit"])
def test_a_keyed_entry_that_is_no_object_is_an_invalid_field(field: str) -> None:
    parsed = keyed(**{field: {"rm": [1]}})
    with pytest.raises(InvalidField) as caught:
        parsed.options_of("rm") if field == "options" else parsed.credit_of("rm")
    assert caught.value.param == f"{field}.rm"


def test_a_wrong_keyed_credit_is_named_with_its_scorer() -> None:
    with pytest.raises(InvalidField) as caught:
        keyed(credit={"lm": {"beta": 2}}).credit_of("lm")
    assert caught.value.param == "credit.lm.beta"


def test_combine_maps_names_to_weights_of_any_sign() -> None:
    assert keyed(combine={"rm": 1, "lm": -0.5}).combine == {"rm": 1.0, "lm": -0.5}


def test_messages_are_made_plain_once_an_item_and_are_no_field_of_it() -> None:
    fields = {"prompt": [{"role": "user", "content": "q", "name": "x"}], "response": "r"}
    item, other = (parse(Item, fields) for _ in range(2))
    assert item.messages == fields["prompt"]
    assert item.messages is item.messages
    assert "messages" not in item.model_dump()
    assert item == other
    assert parse(Item, {**fields, "prompt": [5, 6]}).messages is None


def test_options_that_are_not_keyed_by_scorer_are_at_fault_where_they_stand() -> None:
    fields = {"scorers": ["a"], "options": {"a": 3}, "items": [{"prompt": "p", "response": "r"}]}
    with pytest.raises(InvalidField, match="keyed by scorer name") as caught:
        parse(RewardsRequest, fields).options_of("a")
    assert caught.value.param == "options.a"


@pytest.mark.parametrize("label", ["", "A", "a b", "\x00", "a=b", "a" * 65])
def test_a_label_that_is_no_name_is_refused(label: str) -> None:
    body = {"scorers": [f"{label}=rm"], "items": [{"prompt": "a", "response": "b"}]}
    with pytest.raises(InvalidField, match="the label in"):
        parse(RewardsRequest, body)
    assert parse(RewardsRequest, {**body, "scorers": ["a-1_" * 16 + "=rm"]})
