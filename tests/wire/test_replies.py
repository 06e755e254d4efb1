"""What a reply looks like: the contract's examples read as a Reply, and newer servers may say
more."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tokenreward.errors import OutOfMemory
from tokenreward.wire import (
    ErrorDetail,
    Reply,
    decode_rewards,
    encode_rewards,
    parse_reply,
    read_reply,
)

CONTRACT_EXAMPLE = """
    {"id": "1", "scorer": "attention_dense", "model": "rm", "version": 3,
     "items": [{"index": 0, "rewards": [0.1, 0.2, 1.7], "score": 2.0,
                "tokens": null, "error": null}],
     "usage": {"prompt_tokens": 9, "response_tokens": 5},
     "timing": {"queue_s": 0.001, "tokenize_s": 0.0, "compute_s": 0.012}}
"""


def reply(**item: Any) -> Reply:
    body = json.loads(CONTRACT_EXAMPLE)
    body["items"] = [{"index": 0, **item}]
    return parse_reply(json.dumps(body).encode())


def test_the_contracts_reply_reads_as_what_it_says() -> None:
    parsed = parse_reply(CONTRACT_EXAMPLE.encode())
    assert (parsed.id, parsed.scorer, parsed.model, parsed.version) == (
        "1",
        "attention_dense",
        "rm",
        3,
    )
    only = parsed.items[0]
    assert (only.index, only.rewards, only.score) == (0, [0.1, 0.2, 1.7], 2.0)
    assert (only.tokens, only.error, only.scorers) == (None, None, None)
    assert (parsed.usage.prompt_tokens, parsed.usage.response_tokens) == (9, 5)
    assert (parsed.timing.queue_s, parsed.timing.tokenize_s, parsed.timing.compute_s) == (
        0.001,
        0.0,
        0.012,
    )


def test_a_keyed_reply_names_model_and_version_per_scorer() -> None:
    results = {"rm": {"rewards": [1.0], "score": 1.0, "error": None, "model": "m", "version": 2}}
    only = reply(rewards=None, score=None, scorers=results).items[0]
    assert only.scorers is not None
    assert (only.scorers["rm"].model, only.scorers["rm"].version) == ("m", 2)
    assert only.scorers["rm"].rewards == [1.0]


def test_a_reply_names_the_sources_that_were_asked_and_most_replies_have_none() -> None:
    body = {**json.loads(CONTRACT_EXAMPLE), "sources": {"sft": {"model": "m", "version": 2}}}
    sources = parse_reply(json.dumps(body).encode()).sources
    assert (sources["sft"].model, sources["sft"].version) == ("m", 2)
    assert parse_reply(CONTRACT_EXAMPLE.encode()).sources is None


def test_base64_rewards_stay_text_until_they_are_decoded() -> None:
    rewards = np.array([0.1, -3.0], np.float32)
    only = reply(rewards=encode_rewards(rewards), score=None).items[0]
    assert only.rewards is not None
    assert decode_rewards(only.rewards).tolist() == rewards.tolist()


def test_an_error_of_ours_reads_as_error_detail() -> None:
    error = OutOfMemory("too long for this GPU", param="items[0]")
    assert reply(error=error.detail()).items[0].error == ErrorDetail(
        code="out_of_memory", message="too long for this GPU", param="items[0]", retryable=True
    )


def test_shown_tokens_carry_their_span_or_none() -> None:
    shown = [{"id": 5, "text": "It", "span": [0, 2]}, {"id": 1, "text": "<|end|>", "span": None}]
    tokens = reply(rewards=[0.0, 0.0], tokens=shown).items[0].tokens
    assert tokens is not None
    assert [(token.id, token.text, token.span) for token in tokens] == [
        (5, "It", (0, 2)),
        (1, "<|end|>", None),
    ]


def test_fields_of_a_newer_server_are_ignored() -> None:
    body = json.loads(CONTRACT_EXAMPLE)
    body["energy_j"] = 3
    body["items"][0]["entropy"] = [0.5]
    body["usage"]["cached_tokens"] = 2
    assert parse_reply(json.dumps(body).encode()) == parse_reply(CONTRACT_EXAMPLE.encode())


@pytest.mark.parametrize("missing", ["id", "items", "usage", "timing"])
def test_a_reply_that_lacks_what_was_promised_is_no_reply(missing: str) -> None:
    body = json.loads(CONTRACT_EXAMPLE)
    del body[missing]
    with pytest.raises(ValidationError):
        read_reply(body)
