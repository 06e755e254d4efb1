"""The limit on lists and objects in a JSON body: what it counts, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import Any

import pytest

from tokenreward.errors import BodyTooLarge
from tokenreward.wire import RewardsRequest
from tokenreward.wire.limits import MAX_CONTAINERS, refuse_many_containers
from tokenreward.wire.media import JSON

MIB = 2**20


def num_containers(value: Any) -> int:
    """As a reader of the parsed body counts them."""
    if isinstance(value, dict):
        return 1 + sum(map(num_containers, value.values()))
    return 1 + sum(map(num_containers, value)) if isinstance(value, list) else 0


def counted(body: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("tokenreward.wire.limits.MAX_CONTAINERS", -1)
    with pytest.raises(BodyTooLarge) as caught:
        refuse_many_containers(body)
    return int(caught.value.message.split()[3])


def made(random: random.Random, depth: int) -> Any:
    kind = random.randrange(4 if depth else 2)
    if kind == 0:
        return random.randrange(9)
    if kind == 1:
        return "".join(random.choices('[{\\"]}x\\\n', k=random.randrange(9)))
    if kind == 2:
        return [made(random, depth - 1) for _ in range(random.randrange(4))]
    return {
        str(made(random, 0)) + str(key): made(random, depth - 1)
        for key in range(random.randrange(4))
    }


def test_brackets_in_strings_do_not_count_whatever_is_escaped_in_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = random.Random(0)
    for _ in range(2000):
        value = made(source, 4)
        assert counted(json.dumps(value).encode(), monkeypatch) == num_containers(value), (
            json.dumps(value)
        )


def test_as_many_as_the_limit_are_taken_and_one_more_is_refused_with_count_limit_and_advice() -> (
    None
):
    body = b"[" + b",".join([b"[]"] * (MAX_CONTAINERS - 1)) + b"]"
    refuse_many_containers(body)
    with pytest.raises(BodyTooLarge) as caught:
        refuse_many_containers(body[:-1] + b",{}]")
    assert caught.value.status == 413
    for part in (
        str(MAX_CONTAINERS + 1),
        str(MAX_CONTAINERS),
        "fewer items",
        "`ids_b64`",
        "`bin`",
    ):
        assert part in caught.value.message


def test_a_full_request_with_two_hundred_spans_each_is_taken() -> None:
    spans = [[index, index + 1] for index in range(200)]
    item = {"prompt": [{"role": "user", "content": "q"}], "response": "r" * 200, "spans": spans}
    asked = JSON.parse(RewardsRequest, json.dumps({"scorer": "x", "items": [item] * 4096}).encode())
    assert len(asked.items) == 4096


@pytest.mark.parametrize("text", [b"[", b"{", b"[{", rb"\"[", rb"\\["], ids=repr)
def test_a_long_text_of_brackets_is_a_text(text: bytes) -> None:
    body = (
        b'{"scorer":"x","items":[{"prompt":"","response":"'
        + text * (15 * MIB // len(text))
        + b'"}]}'
    )
    assert len(JSON.parse(RewardsRequest, body).items) == 1


@pytest.mark.parametrize(
    "unit", [b"[", b'["', b'"[', rb"\"[", rb'"\"[', b'"["', rb"[\\", b'"["[', b'["",'], ids=repr
)
def test_counting_takes_time_in_proportion_to_the_body_whatever_is_in_it(unit: bytes) -> None:
    body = unit * (16 * MIB // len(unit))
    began = time.process_time()
    with contextlib.suppress(BodyTooLarge):
        refuse_many_containers(body)
    assert time.process_time() - began < 5
