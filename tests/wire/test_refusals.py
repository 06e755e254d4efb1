"""What a malformed request is answered with: the error's class, the path of the field at fault,
never the payload."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.errors import (
    InvalidField,
    MalformedBody,
    MalformedJson,
    RequestError,
    UnknownField,
    UnknownOption,
)
from tokenreward.wire import Credit, Item, RewardsRequest, parse, parse_json, path, refusal

SECRET = "the caller's own words"


def refuse(body: bytes | Any) -> RequestError:
    """The error that this body, or this object as JSON, is refused with."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as caught:
        parse_json(RewardsRequest, encoded)
    return caught.value


def request(**fields: Any) -> dict[str, Any]:
    return {"scorer": "rm", "items": [{"prompt": "p", "response": "r"}], **fields}


def item(**fields: Any) -> dict[str, Any]:
    return request(
        items=[{"prompt": "p", "response": "r"}, {"prompt": "p", "response": "r", **fields}]
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"scorer": }',
        b'{"scorer": "a"',
        b"{'scorer': 'a'}",
        b'{"scorer": "a",}',
        b'{"scorer": "\xff"}',  # not UTF-8
        b'{"scorer": "\\ud800", "items": []}',  # a lone surrogate
        b'{"scorer": "\\udc00x", "items": []}',
        b"[" * 10_000,
        b'{"min_version": ' + b"9" * 5_000 + b"}",
        b"\x00\x01",
    ],
)
def test_what_is_not_json_is_malformed_json(body: bytes) -> None:
    error = refuse(body)
    assert type(error) is MalformedJson
    assert (error.status, error.param, error.retryable) == (400, None, False)


@pytest.mark.parametrize("body", [[1, 2], "text", None, 3, 2.5, True])
def test_json_that_is_no_object_is_a_malformed_body(body: Any) -> None:
    error = refuse(body)
    assert type(error) is MalformedBody
    assert (error.status, error.param) == (400, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (request(zzz=1), "zzz"),
        (item(zzz=1), "items[1].zzz"),
        (item(prompt={"ids_b64": "", "dtype": "int64"}), "items[1].prompt.dtype"),
        (item(response={"ids_b64": "", "dtype": "int64"}), "items[1].response.dtype"),
    ],
)
def test_a_field_that_does_not_exist_is_an_unknown_field_at_any_depth(
    body: Any, param: str
) -> None:
    error = refuse(body)
    assert type(error) is UnknownField
    assert (error.status, error.param) == (422, param)
    assert f"`{param}`" not in error.message
    assert str(error) == f"`{param}`: {error.message}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scorer": "rm"}, "items"),
        (request(items=[]), "items"),
        (request(items={}), "items"),
        (request(items=[3]), "items[0]"),
        (request(items=[{"response": "r"}]), "items[0].prompt"),
        (request(items=[{"prompt": "p"}]), "items[0].response"),
        (request(scorer=3), "scorer"),
        (request(scorer=None, scorers=[]), "scorers"),
        (request(scorer=None, scorers=[3]), "scorers[0]"),
        (request(scorer=None, scorers=["a", "b", "a"]), "scorers"),
        (request(scorer=None, scorers=["a"], combine={"a": "x"}), "combine.a"),
        (request(scorer=None, scorers=["a"], combine=["a"]), "combine"),
        (request(options=[]), "options"),
        (request(credit="last"), "credit"),
        (request(encoding_format="hex"), "encoding_format"),
        (request(min_version=-1), "min_version"),
        (item(prompt=None), "items[1].prompt"),
        (item(prompt=5), "items[1].prompt"),
        (item(prompt=[[1, 2]]), "items[1].prompt[0]"),
        (item(prompt=[1, {"role": "user"}]), "items[1].prompt[1]"),
        (item(prompt=[{"role": "user", "content": "x"}, 1]), "items[1].prompt[1]"),
        (item(prompt=[{"content": "x"}]), "items[1].prompt[0].role"),
        (item(prompt=[{"role": 1}]), "items[1].prompt[0].role"),
        (item(prompt=[{"role": "user", "content": 5}]), "items[1].prompt[0].content"),
        (item(prompt={"ids": ""}), "items[1].prompt"),
        (item(prompt={"ids_b64": [1]}), "items[1].prompt.ids_b64"),
        (item(response=None), "items[1].response"),
        (item(response=[{"role": "user", "content": "x"}]), "items[1].response"),
        (item(response=[0, 2**31]), "items[1].response[1]"),
        (item(response=[-(2**31) - 1]), "items[1].response[0]"),
        (item(spans=[[0, 1], [1]]), "items[1].spans[1]"),
        (item(spans=[[0, 1, 2]]), "items[1].spans[0]"),
        (item(spans=[[0, 2**70]]), "items[1].spans[0][1]"),
        (item(spans="0-1"), "items[1].spans"),
        (item(mask=[1, 2]), "items[1].mask[1]"),
        (item(mask=[-1]), "items[1].mask[0]"),
        (item(mask=[None]), "items[1].mask[0]"),
        (item(mask={"0": 1}), "items[1].mask"),
        (item(policy_logprobs=[0.0, None]), "items[1].policy_logprobs[1]"),
        (item(tools={}), "items[1].tools"),
        (item(tools=[3]), "items[1].tools[0]"),
        (item(chat_template_kwargs=[]), "items[1].chat_template_kwargs"),
    ],
)
def test_a_field_of_the_wrong_form_is_an_invalid_field_and_its_path_is_given(
    body: Any, param: str
) -> None:
    error = refuse(body)
    assert type(error) is InvalidField
    assert (error.status, error.param) == (422, param)
    assert f"`{param}`" not in error.message
    assert str(error) == f"`{param}`: {error.message}"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (item(response=["3"]), "items[1].response[0]"),
        (item(response=[3.0]), "items[1].response[0]"),
        (item(response=[1.5]), "items[1].response[0]"),
        (item(response=[True]), "items[1].response[0]"),
        (item(spans=[[0, 1.0]]), "items[1].spans[0][1]"),
        (item(spans=[["0", 1]]), "items[1].spans[0][0]"),
        (item(mask=["1"]), "items[1].mask[0]"),
        (item(mask=["true"]), "items[1].mask[0]"),
        (item(mask=[1.0]), "items[1].mask[0]"),
        (item(ref_logprobs=["-0.5"]), "items[1].ref_logprobs[0]"),
        (item(ref_logprobs=[True]), "items[1].ref_logprobs[0]"),
        (item(score="1"), "items[1].score"),
        (item(score=False), "items[1].score"),
        (item(finished=1), "items[1].finished"),
        (item(finished="true"), "items[1].finished"),
        (item(steps="a"), "items[1].steps"),
        (item(steps=[]), "items[1].steps"),
        (item(steps=["a", 1]), "items[1].steps[1]"),
        (item(steps=[[0, 1], [1]]), "items[1].steps[1]"),
        (item(steps=[[0, 1], "a"]), "items[1].steps[1]"),
        (request(return_tokens=1), "return_tokens"),
        (request(min_version="1"), "min_version"),
        (request(min_version=1.0), "min_version"),
        (request(min_version=True), "min_version"),
    ],
)
def test_nothing_is_coerced(body: Any, param: str) -> None:
    error = refuse(body)
    assert type(error) is InvalidField
    assert error.param == param


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["policy_logprobs", "ref_logprobs"])
def test_log_probs_that_are_not_finite_are_invalid(field: str, number: str) -> None:
    item = f'{{"prompt": "p", "response": "r", "{field}": [0, {number}]}}'
    body = f'{{"scorer": "rm", "items": [{item}]}}'
    error = refuse(body.encode())
    assert type(error) is InvalidField
    assert error.param == f"items[0].{field}[1]"


@pytest.mark.parametrize("field", ["finished", "spans", "steps"])
@pytest.mark.parametrize("response", [[1, 2], {"ids_b64": "AQAAAA=="}])
def test_fields_of_text_with_ids_are_invalid(field: str, response: Any) -> None:
    error = refuse(
        item(
            response=response,
            **{field: {"finished": False, "spans": [[0, 1]], "steps": [[0, 1]]}[field]},
        )
    )
    assert type(error) is InvalidField
    assert error.param == "items[1]"
    assert f"`{field}`" in error.message


@pytest.mark.parametrize("names", [{}, {"scorer": "a", "scorers": ["b"]}])
def test_exactly_one_of_scorer_and_scorers_must_be_given(names: dict[str, Any]) -> None:
    error = refuse({"items": [{"prompt": "p", "response": "r"}], **names})
    assert type(error) is InvalidField
    assert "exactly one of `scorer` and `scorers`" in error.message


def test_combine_without_scorers_is_invalid() -> None:
    error = refuse(request(combine={"rm": 1}))
    assert type(error) is InvalidField
    assert "`combine` needs `scorers`" in error.message


@pytest.mark.parametrize(
    ("credit", "kind", "param"),
    [
        ({"name": "sum"}, InvalidField, "credit.name"),
        ({"beta": -0.1}, InvalidField, "credit.beta"),
        ({"beta": 1.1}, InvalidField, "credit.beta"),
        ({"beta": "0.5"}, InvalidField, "credit.beta"),
        ({"gamma": 2}, InvalidField, "credit.gamma"),
        ({"scale": float("nan")}, InvalidField, "credit.scale"),
        ({"shift": float("inf")}, InvalidField, "credit.shift"),
        ({"clip": [1]}, InvalidField, "credit.clip"),
        ({"clip": [0, 1, 2]}, InvalidField, "credit.clip"),
        ({"clip": [1, -1]}, InvalidField, "credit"),
        ({"clip": [0, None]}, InvalidField, "credit.clip[1]"),
        ({"kl": 0.1}, InvalidField, "credit.kl"),
        ({"kl": {}}, InvalidField, "credit.kl.coef"),
        ({"kl": {"coef": "0.1"}}, InvalidField, "credit.kl.coef"),
        ({"kl": {"coef": 0.1, "estimator": "k4"}}, InvalidField, "credit.kl.estimator"),
        ({"kl": {"coef": 0.1, "reference": 3}}, InvalidField, "credit.kl.reference"),
        ({"whiten": True}, UnknownField, "credit.whiten"),
        ({"kl": {"coef": 0.1, "target": 6}}, UnknownField, "credit.kl.target"),
    ],
)
def test_a_wrong_credit_is_refused_with_its_path(
    credit: Any, kind: type[RequestError], param: str
) -> None:
    parsed = parse(RewardsRequest, request(credit=credit))
    with pytest.raises(kind) as caught:
        parsed.credit_of("rm")
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        request(encoding_format=SECRET),
        request(min_version=SECRET),
        request(items=SECRET),
        request(items=[SECRET]),
        request(items=[{"prompt": SECRET}]),
        request(items=[{"prompt": SECRET, "response": None}]),
        request(items=[{"prompt": [{"role": 3, "content": SECRET}], "response": SECRET}]),
        request(items=[{"prompt": [{"role": "user", "content": [SECRET]}], "response": SECRET}]),
        request(items=[{"prompt": "p", "response": [SECRET]}]),
        request(items=[{"prompt": "p", "response": "r", "mask": [SECRET]}]),
        request(items=[{"prompt": "p", "response": "r", "spans": [[SECRET, 1]]}]),
        request(items=[{"prompt": "p", "response": "r", "chat_template_kwargs": SECRET}]),
        request(items=[{"prompt": "p", "response": "r", "tools": [SECRET]}]),
        SECRET,
        [SECRET],
        f'{{"scorer": "{SECRET}'.encode(),
        f'{{"scorer": "{SECRET}\\ud800"}}'.encode(),
        f'{{"scorer": {SECRET}}}'.encode(),
    ],
)
def test_a_refusal_never_quotes_what_the_caller_wrote(body: Any) -> None:
    error = refuse(body)
    assert SECRET not in json.dumps(error.detail())
    assert "caller" not in error.message


def test_a_refusal_shows_a_number_but_not_thousands_of_digits() -> None:
    assert "got 2147483648" in refuse(item(response=[2**31])).message
    error = refuse(item(response=[10**3000]))
    assert "a number of 3001 digits" in error.message
    assert len(error.message) < 200


@pytest.mark.parametrize("value", [3, [1], "text"])
def test_messages_do_not_name_our_classes(value: Any) -> None:
    with pytest.raises(InvalidField) as caught:
        parse(Credit, {"kl": value}, prefix=("credit",))
    assert "Kl" not in caught.value.message
    assert "must be an object" in caught.value.message


def test_a_field_name_that_is_no_unicode_is_refused_with_a_detail_that_can_be_sent() -> None:
    with pytest.raises(InvalidField) as caught:
        parse(Item, {"prompt": "p", "response": "r", "\ud800": 1})
    json.dumps(caught.value.detail(), ensure_ascii=False).encode()
    assert caught.value.param is None


def test_an_unknown_option_is_told_from_an_unknown_field() -> None:
    class Options(Credit):
        pass

    with pytest.raises(ValueError, match="1 validation error") as caught:
        Options.model_validate({"alhpa": 1})
    error = refusal(caught.value, prefix=("options", "rm"), unknown=UnknownOption)  # type: ignore[arg-type]
    assert type(error) is UnknownOption
    assert (error.status, error.param) == (422, "options.rm.alhpa")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ((), ""),
        (("items",), "items"),
        (("items", 0, "response", "ids", 3), "items[0].response[3]"),
        (("items", 0, "prompt", "messages", 2, "content", "str"), "items[0].prompt[2].content"),
        (("items", 12, "prompt", "text"), "items[12].prompt"),
        (("options", "text"), "options.text"),
        (("credit", "messages", "ids"), "credit.messages.ids"),
        ((1,), "[1]"),
    ],
)
def test_a_path_reads_as_a_person_writes_it(location: tuple[int | str, ...], expected: str) -> None:
    assert path(location) == expected


JSON_VALUES = st.recursive(
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


def error_of(body: Any) -> RequestError | None:
    """What a body is refused with, its options and credit included; None if it is taken."""
    try:
        parsed = parse_json(RewardsRequest, json.dumps(body).encode())
        for name in parsed.names:
            parsed.options_of(name)
            parsed.credit_of(name)
    except RequestError as error:
        return error
    return None


@given(field=st.sampled_from(sorted(RewardsRequest.model_fields)), value=JSON_VALUES)
def test_any_json_value_in_any_request_field_is_taken_or_is_a_422(field: str, value: Any) -> None:
    error = error_of(request(**{field: value}))
    assert error is None or (error.status == 422 and error.param != "")


@given(field=st.sampled_from(sorted(Item.model_fields)), value=JSON_VALUES)
def test_any_json_value_in_any_item_field_is_taken_or_refused_by_that_items_name(
    field: str, value: Any
) -> None:
    error = error_of(item(**{field: value}))
    assert error is None or (error.status == 422 and str(error.param).startswith("items[1]"))
