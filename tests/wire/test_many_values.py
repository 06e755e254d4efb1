"""One item, and what stands outside of the items, may have only so many values: they are refused
before any of them becomes an object, for others wait meanwhile."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tokenreward.errors import BodyTooLarge, InvalidField, MalformedJson, RequestError
from tokenreward.wire import RewardsRequest, limits, msgpack_values, parsing
from tokenreward.wire.media import JSON, MSGPACK

LIMITS = {"MAX_VECTOR_VALUES": 60, "MAX_TEMPLATE_VALUES": 30, "MAX_OTHER_VALUES": 40}
USER = {"role": "user", "content": "a"}
TEXT_PART = {"type": "text", "text": "a"}
CALL = {"function": {"name": "f", "arguments": {}}}


def item(**fields: Any) -> dict[str, Any]:
    return {"prompt": "2+2?", "response": "It is 4.", **fields}


def body(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"scorer": "x", "items": list(items) or [item()], **fields}


def prompt_of(message: dict[str, Any]) -> dict[str, Any]:
    return body(item(), item(prompt=[message]))


def keys(number: int) -> dict[str, int]:
    return {f"k{place}": 1 for place in range(number)}


MANY: dict[str, tuple[dict[str, Any], str | None]] = {
    "messages": (body(item(), item(prompt=[USER] * 40)), "items[1].prompt"),
    "parts": (prompt_of({"role": "user", "content": [TEXT_PART] * 40}), "items[1].prompt"),
    "calls": (prompt_of({"role": "a", "tool_calls": [CALL] * 40}), "items[1].prompt"),
    "keys of a message": (prompt_of({**USER, **keys(40)}), "items[1].prompt"),
    "a value in a message": (prompt_of({**USER, "x": [[]] * 40}), "items[1].prompt"),
    "a message as response": (
        body(item(response={"role": "assistant", "content": [TEXT_PART] * 40})),
        "items[0].response",
    ),
    "tools": (body(item(prompt=[USER], tools=[{"name": "f"}] * 40)), "items[0].tools"),
    "variables": (
        body(item(prompt=[USER], chat_template_kwargs={"a": [1] * 70})),
        "items[0].chat_template_kwargs",
    ),
    "ids": (body(item(response=[5] * 70)), "items[0].response"),
    "ids of the prompt": (body(item(prompt=[5] * 70)), "items[0].prompt"),
    "spans": (body(item(spans=[[0, 0]] * 70)), "items[0].spans"),
    "steps": (body(item(steps=["a"] * 70)), "items[0].steps"),
    "steps as spans": (body(item(steps=[[0, 0]] * 70)), "items[0].steps"),
    "mask": (body(item(mask=[1] * 70)), "items[0].mask"),
    "log-probs": (body(item(ref_logprobs=[0.5] * 70)), "items[0].ref_logprobs"),
    "options": (body(options={"a": [1] * 90}), None),
    "keys of options": (body(options=keys(90)), None),
    "credit": (body(credit={"x": [[]] * 90}), None),
    "weights": (body(combine=keys(90)), None),
    "scorers": (body(scorers=["a"] * 90), None),
    "unknown fields": (body(**keys(90)), None),
    "unknown fields of an item": (body(item(**keys(90))), None),
}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The limits are small; what reaches the models that make objects is noted."""
    for name, limit in LIMITS.items():
        monkeypatch.setattr(limits, name, limit)
    monkeypatch.setattr("tokenreward.wire.msgpack.MAX_OTHER_VALUES", LIMITS["MAX_OTHER_VALUES"])
    contents: list[object] = []
    for name in ("model_validate", "model_validate_json"):
        method = getattr(RewardsRequest, name)

        def noted(content: object, method: Any = method) -> Any:
            contents.append(content)
            return method(content)

        monkeypatch.setattr(RewardsRequest, name, noted)
    return contents


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("media", [JSON, MSGPACK], ids=lambda media: media.name)
def test_too_many_values_in_one_place_are_refused_before_they_become_objects(
    built: list[object], media: Any, name: str
) -> None:
    content, param = MANY[name]
    with pytest.raises(BodyTooLarge) as caught:
        media.parse(RewardsRequest, media.dump(content))
    assert built == []
    assert param is None or caught.value.param == param
    assert "the limit is " in caught.value.message


@pytest.mark.parametrize("media", [JSON, MSGPACK], ids=lambda media: media.name)
def test_what_keeps_to_the_limits_is_parsed_however_many_items_it_has(
    built: list[object], media: Any
) -> None:
    conversation = [{"role": "user", "content": "a, b, [c], {d}" * 20}] * 7
    spans = [[place, place + 1] for place in range(8)]
    items = [item(prompt=conversation, spans=spans, mask=[1] * 8), item(response=[5] * 50)] * 20
    request = media.parse(RewardsRequest, media.dump(body(*items, options={"a": [1] * 9})))
    assert len(request.items) == 40
    assert len(built) == 1


def test_commas_and_brackets_of_texts_are_no_values(built: list[object]) -> None:
    text = ',[{"' * 100
    message = {"role": "user", "content": text}
    items = [item(prompt=text, response=text), item(prompt=[message], steps=[text])]
    assert len(JSON.parse(RewardsRequest, json.dumps(body(*items)).encode()).items) == 2


def test_a_field_that_comes_twice_is_counted_twice(built: list[object]) -> None:
    hidden = json.dumps([USER] * 40)
    text = f'{{"scorer":"x","items":[{{"prompt":{hidden},"prompt":"a","response":"b"}}]}}'
    with pytest.raises(BodyTooLarge):
        JSON.parse(RewardsRequest, text.encode())
    assert built == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"items": [{"prompt": NaN, "a": MANY}]}', MalformedJson),
        ('{"items": [{"prompt": "a", "response": MANY}', MalformedJson),
        ('{"items": [MANY]}', InvalidField),
        ('{"items": 5, "a": MANY}', InvalidField),
        ('{"a": MANY}', InvalidField),
        ("MANY", InvalidField),
        ('{"items": [], "a": MANY}', BodyTooLarge),
    ],
)
def test_a_large_body_that_is_no_request_is_refused_without_reading_it(
    built: list[object], text: str, error: type[RequestError]
) -> None:
    with pytest.raises(error):
        JSON.parse(RewardsRequest, text.replace("MANY", json.dumps([[1]] * 100)).encode())
    assert built == []


def test_very_many_items_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ITEMS", 50)
    monkeypatch.setattr(limits, "MAX_OTHER_VALUES", 40)
    with pytest.raises(BodyTooLarge, match="there are 51, the limit is 50") as caught:
        JSON.parse(RewardsRequest, JSON.dump(body(*[item()] * 51)))
    assert caught.value.param == "items"
    assert len(JSON.parse(RewardsRequest, JSON.dump(body(*[item()] * 50))).items) == 50


def test_a_prompt_has_only_so_many_messages_and_a_list_only_so_many_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of bodies in other programs' forms, whose items are not told apart in the bytes."""
    for prompt in ([USER] * (2**14 + 1), [5] * (2**19 + 1)):
        with pytest.raises(InvalidField, match="at most"):
            parsing.parse(RewardsRequest, body(item(prompt=prompt)))
    assert len(parsing.parse(RewardsRequest, body(item(prompt=[USER] * 2**14))).items) == 1


def test_the_body_of_another_program_has_only_so_many_lists_and_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "MAX_FOREIGN_CONTAINERS", 20)
    monkeypatch.setattr(limits, "MAX_FOREIGN_TEXTS", 30)
    for content in ([[]] * 20, ["a"] * 31, ["\\"] * 31, [{"a": "b"}] * 20):
        with pytest.raises(BodyTooLarge):
            limits.refuse_large_foreign_json(json.dumps(content).encode())
    for content in ([[]] * 19, ['a"[' * 50] * 30, [5] * 1000):
        limits.refuse_large_foreign_json(json.dumps(content).encode())
    monkeypatch.setattr(limits, "MAX_FOREIGN_VALUES", 50)
    with pytest.raises(BodyTooLarge, match="51 values, the limit is 50"):
        limits.refuse_large_foreign_json(json.dumps([5] * 51).encode())
    limits.refuse_large_foreign_json(json.dumps([5] * 20 + [",[{" * 90]).encode())


@pytest.mark.parametrize("is_foreign", [False, True])
def test_a_number_has_only_so_many_digits(
    built: list[object], monkeypatch: pytest.MonkeyPatch, is_foreign: bool
) -> None:
    """Each of thousands would take a quarter of a millisecond whenever it is written."""
    monkeypatch.setattr(limits, "MIN_LONG_BYTES", 2000)
    refuse = limits.refuse_large_foreign_json if is_foreign else limits.refuse_large_json
    for number in ("1" * 401, "-0." + "2" * 401, "1e" + "3" * 401):
        with pytest.raises(MalformedJson, match="more than 400 digits"):
            refuse(b'{"options": {"a": [%s]}, "x": "%s"}' % (number.encode(), b"a" * 2000))
    pi = "3" * 2000
    refuse(b'{"options": {"a": [%s, "%s"]}, "x": 1}' % (b"1" * 400, pi.encode()))


def test_a_request_has_only_so_many_objects(
    built: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_OBJECTS", 100)
    with pytest.raises(BodyTooLarge, match="121 objects, the limit is 100"):
        JSON.parse(RewardsRequest, json.dumps(body(*[item(prompt=[USER] * 5)] * 20)).encode())
    assert built == []
    items = [item(prompt=[USER] * 3, spans=[[0, 1]] * 8, response="{" * 50)] * 20
    assert len(JSON.parse(RewardsRequest, json.dumps(body(*items)).encode()).items) == 20


SEVERAL = {
    "items": ([item()] * 51, "items"),
    "messages": ([item(prompt=[{}] * 30)] * 4, None),
    "spans": ([item(spans=[[0, 1]] * 15)] * 7, None),
    "steps": ([item(steps=["a"] * 30)] * 4, None),
    "ids": ([item(response=[5] * 61)], "items[0].response"),
    "parts of a message": (
        [item(prompt=[{"role": "a", "content": [{}] * 300}])],
        "items[0].prompt",
    ),
    "tools": ([item(prompt=[USER], tools=[[[]]] * 30 + [{}] * 200)], "items[0].tools"),
    "unknown fields": ([item(x=[[]] * 9000)], None),
} | {
    f"{name} that nests": ([item(**{name: [[{}] * 300]})], f"items[0].{name}")
    for name in ("prompt", "response", "tools", "chat_template_kwargs", "spans", "steps", "mask")
}


@pytest.mark.parametrize("name", [*SEVERAL, "options", "no list"])
def test_a_msgpack_body_is_counted_before_any_of_it_becomes_an_object(
    built: list[object], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A body of 4 MiB may be as many empty maps, which took 11 s."""
    for limit, most in (("MAX_ITEMS", 50), ("MAX_OBJECTS", 100)):
        monkeypatch.setattr(limits, limit, most)
    for limit, most in (("SMALL_BYTES", 100), ("MAX_OTHER_BYTES", 150), ("MAX_SPANS", 100)):
        monkeypatch.setattr(msgpack_values, limit, most)
    items, param = SEVERAL.get(name, ([item()], None))
    content = body(*items)
    if name == "options":
        content["options"] = {"a": [[]] * 200}
    elif name == "no list":
        content["items"], param = {"a": [[]] * 200}, "items"

    def unpack(_: bytes) -> None:
        raise AssertionError("an object is made")

    monkeypatch.setattr("tokenreward.wire.msgpack.unpack", unpack)
    with pytest.raises(BodyTooLarge if name != "no list" else InvalidField) as caught:
        MSGPACK.parse(RewardsRequest, MSGPACK.dump(content))
    assert caught.value.param == param
    assert built == []


LONG = "a" * 5000
TEXT_FIELDS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": LONG, "response": LONG},
    "bin": {"prompt": bytes(4000), "response": bytes(40000), "mask": bytes(40000)},
    "ids as base64": {"prompt": {"ids_b64": "AAAA" * 400}, "response": {"ids_b64": "AAAA" * 900}},
    "messages": {"prompt": [{"role": "user", "content": LONG, "x": LONG}] * 3},
    "parts": {"prompt": [{"role": "user", "content": [{"type": "text", "text": LONG}] * 3}]},
    "calls": {
        "prompt": [
            {"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"a": LONG}}}]}
        ]
    },
    "a message as response": {"response": {"role": "assistant", "content": LONG}},
    "tools": {"prompt": [USER], "tools": [{"function": {"description": LONG}}]},
    "variables": {"prompt": [USER], "chat_template_kwargs": {"a": LONG}},
    "steps": {"steps": [LONG] * 2},
}


@pytest.mark.parametrize("name", TEXT_FIELDS)
def test_texts_and_bin_of_msgpack_are_no_plain_bytes(
    built: list[object], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(msgpack_values, "SMALL_BYTES", 100)
    monkeypatch.setattr(msgpack_values, "MAX_OTHER_BYTES", 150)
    monkeypatch.setattr(limits, "MAX_PLAIN_BYTES", 1000)
    content = body(item(**TEXT_FIELDS[name]), item(response="b" * 9000))
    assert len(MSGPACK.parse(RewardsRequest, MSGPACK.dump(content)).items) == 2


@pytest.mark.parametrize("texts", [[""] * 20, {"": ""}, [["a"]] * 10])
def test_each_text_of_msgpack_has_a_plain_byte_however_short_it_is(
    built: list[object], monkeypatch: pytest.MonkeyPatch, texts: Any
) -> None:
    monkeypatch.setattr(msgpack_values, "SMALL_BYTES", 100)
    monkeypatch.setattr(limits, "MAX_PLAIN_BYTES", 1000)
    items = [item(prompt=[USER], chat_template_kwargs={"a": texts})] * 40
    with pytest.raises(BodyTooLarge, match="the limit is 1000: send vectors as `bin`"):
        MSGPACK.parse(RewardsRequest, MSGPACK.dump(body(*items)))
    assert built == []


def test_what_is_wrong_is_named_without_what_the_caller_sent() -> None:
    """Making that into objects again takes as long as parsing."""

    class Wrong:
        def error_count(self) -> int:
            return 2

        def errors(self, *, include_input: bool = True, **_: Any) -> list[Any]:
            assert not include_input
            return [{"loc": ("items", 0, "prompt"), "type": "missing", "msg": ""}]

    error = parsing.refusal(Wrong())  # type: ignore[arg-type]
    assert (error.param, error.message) == ("items[0].prompt", "it is required")


def test_a_count_of_plain_objects_stops_at_its_limit() -> None:
    class Endless(dict[str, Any]):
        def values(self) -> Any:
            raise AssertionError("it is looked into")

    with pytest.raises(BodyTooLarge):
        limits.refuse_many_values([[Endless()] * 5, [1] * 5], 4)
    limits.refuse_many_values([[1], {"a": [2]}, "text", msgspec.UNSET], 7)
