"""Bodies of other programs' protocols with anything in the place of each of their parts: they are
read, or refused by an error of ours, which has a status below 500."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from tokenreward.errors import RequestError
from tokenreward.http.protocols import Protocol, find_protocols
from tokenreward.http.protocols._tokenize import TokenizeRequest
from tokenreward.http.protocols._vllm import PoolingRequest
from tokenreward.settings import ProtocolSettings

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3.5, 2**40, "", "x", "2+2?It is 4.", [], [[]], [None], [0], [5, 6],
    ["a"], [[5, 6]], [["a"]], {}, {"a": 1}, [{}], [{"role": "assistant", "content": "x"}],
    [{"role": "user"}],
)  # fmt: skip
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CALL = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "1"}
CALLED = {"type": "function_call_output", "call_id": "1", "output": "4"}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {}}
SAMPLING = {"max_new_tokens": 0, "temperature": 0.5}
GENERATE = {"return_logprob": True, "logprob_start_len": 0, "sampling_params": SAMPLING}
INFER = {"request_config": {"prompt_logprobs": 0, "max_tokens": 1}}
# Bodies beside each protocol's own example, by its name.
MORE: dict[str, list[dict[str, Any]]] = {
    "openrlhf": [{"query": ["a whole text"]}],
    "classify": [{"messages": TURNS}, {"input": [[0, 50]]}],
    "pooling": [
        {"messages": TURNS},
        {"input": "abc", "encoding_format": "bytes", "embed_dtype": "float16", "endianness": "big"},
        {"input": ["a", "b"], "task": "classify"},
    ],
    "score": [{"queries": ["a"], "documents": ["b", "c"]}],
    "sglang": [
        {
            "text": ["a", "b"],
            "return_logprob": True,
            "logprob_start_len": [0, -1],
            "sampling_params": [SAMPLING, SAMPLING],
            "top_logprobs_num": [1, 1],
            "token_ids_logprob": [[5], [5]],
        }
    ],
    "completions": [{"prompt": ["a", "b"], "max_tokens": 0, "prompt_logprobs": 2}],
    "trl": [{"sequences": [[5, 6, 7], [8]], "prompt_lengths": [0, 1], "response_format": "binary"}],
    "swift": [
        {
            "infer_requests": [{"messages": TURNS, "add_eos": True, "tools": [TOOL]}],
            "request_config": {"prompt_logprobs": 3, "max_tokens": 0},
        }
    ],
    "nemo_gym": [
        {
            "responses_create_params": {"input": "a", "instructions": "b", "tools": [TOOL]},
            "response": {"output": [CALL, CALLED, {"type": "reasoning"}, TURNS[1]]},
        }
    ],
}
PROTOCOLS = {each.name: each for each in find_protocols().values() if each.asks_for is not None}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part of a body, that of the whole among them."""
    yield place
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield from places(value[key], (*place, key))


def changed(body: Any) -> Iterator[Any]:
    """Bodies with another value in one place, or without that place."""
    yield body
    for place in places(body):
        if not place:
            yield from VALUES
            continue
        for value in (*VALUES, ...):
            copied = part = copy.deepcopy(body)
            for key in place[:-1]:
                part = part[key]
            if value is ...:
                del part[place[-1]]
            else:
                part[place[-1]] = value
            yield copied


def refusal(protocol: Protocol, body: Any) -> RequestError | None:
    """Why a protocol does not read a body; None if it does."""
    try:
        protocol.read(json.dumps(body).encode())
    except RequestError as error:
        return error
    except Exception as error:
        raise AssertionError(f"{body}: {error!r}") from error
    return None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_any_body_is_read_or_refused(name: str) -> None:
    kind, num_read = PROTOCOLS[name], 0
    for example in [json.loads(kind.example), *MORE.get(name, [])]:
        for body in changed(example):
            protocol: Protocol = kind({})
            options = {"top_k": None, "candidates": None} if kind.asks_for == "log_probs" else {}
            protocol.plan = ProtocolSettings(scorer="any", options=options)
            error = refusal(protocol, body)
            if error is None:
                num_read += 1
                continue
            assert 400 <= error.status < 500, body
            assert protocol.write_error(error)[0] == error.status
    assert num_read > 0


def unexpected(*arguments: Any, **keywords: Any) -> None:
    raise AssertionError("it is called")


# A list of each protocol's body that becomes items, or options of one.
LISTS: list[tuple[str, dict[str, Any], str]] = [
    ("/get_reward", {"query": ["a"] * 9, "prompts": ["a"] * 9}, "query"),
    ("/v1/score/evaluation", {"messages": ["a"] * 9}, "messages"),
    ("/score", {"text_1": "a", "text_2": ["b"] * 9}, "text_2"),
    ("/classify", {"input": ["a"] * 9}, "input"),
    ("/v1/embeddings", {"input": [[5]] * 9}, "input"),
    ("/pooling", {"input": ["a"] * 9}, "input"),
    ("/v1/completions", {"prompt": [[5, 6]] * 9, "max_tokens": 0, "prompt_logprobs": 0}, "prompt"),
    ("/generate", {**GENERATE, "input_ids": [[5, 6]] * 9}, "input_ids"),
    ("/generate", {**GENERATE, "text": ["a"] * 9}, "text"),
    (
        "/generate",
        {**GENERATE, "input_ids": [5, 6], "token_ids_logprob": [5] * 9},
        "token_ids_logprob",
    ),
    ("/get_sequence_logprobs/", {"sequences": [[5]] * 9, "prompt_lengths": [1] * 9}, "sequences"),
    ("/infer/", {**INFER, "infer_requests": [{"messages": TURNS}] * 9}, "infer_requests"),
]


@pytest.mark.parametrize(("path", "body", "param"), LISTS, ids=[f"{p} {n}" for p, _, n in LISTS])
def test_a_list_of_more_inputs_than_any_service_takes_is_refused_before_they_are_items(
    monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], param: str
) -> None:
    monkeypatch.setattr("tokenreward.http.protocols._answers.MAX_ITEMS", 8)
    monkeypatch.setattr("tokenreward.wire.Item.__init__", unexpected)
    protocol = find_protocols()[path]({})
    protocol.plan = ProtocolSettings(scorer="x", options={"top_k": None, "candidates": None})
    with pytest.raises(RequestError) as caught:
        protocol.parse(json.dumps(body).encode())
    assert (caught.value.status, caught.value.code) == (413, "too_many_items")
    assert caught.value.param == param
    assert caught.value.message == "there are 9, the limit is 8"


def test_a_list_is_read_up_to_its_first_wrong_entry_whatever_it_may_be_a_list_of() -> None:
    num_wrong = 1000
    for model, body in (
        (PoolingRequest, {"input": [{}] * num_wrong}),
        (TokenizeRequest, {"messages": [5] * num_wrong}),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate_json(json.dumps(body))
        assert caught.value.error_count() < 10
