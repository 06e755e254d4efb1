"""LLaMA-Factory's own client of a reward server, against the service."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
import torch

from fakes import published
from tokenreward_client import Client

SITE = published.site()
TURN = "<|bos|><|user|>{}<|end|><|assistant|>{}<|end|>"
RESPONSES = ["It is 4.", "Five."]


@pytest.fixture(scope="module")
def get_rewards() -> Any:
    return published.definition(
        SITE / "llamafactory/train/ppo/ppo_utils.py",
        "get_rewards_from_server",
        requests=requests,
        json=json,
        torch=torch,
    )


def test_a_batch_of_conversations_gets_the_native_scores(
    get_rewards: Any, url: str, client: Client
) -> None:
    messages = [TURN.format("2+2?", response) for response in RESPONSES]
    rewards = get_rewards(f"{url}/v1/score/evaluation", messages)
    prompt = [{"role": "user", "content": "2+2?"}]
    answers = client.score([(prompt, response) for response in RESPONSES], "reward_model")
    assert rewards.tolist() == pytest.approx([answer.score for answer in answers], abs=1e-6)


def test_one_bad_conversation_fails_the_batch_as_a_key_error(get_rewards: Any, url: str) -> None:
    messages = [TURN.format("2+2?", "It is 4."), "no conversation"]
    with pytest.raises(KeyError, match="scores"):
        get_rewards(f"{url}/v1/score/evaluation", messages)
