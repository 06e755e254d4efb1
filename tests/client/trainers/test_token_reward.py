"""One reward per token for a trainer's hook, before a client that is written here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.token_service import TokenService
from tokenreward.alignment import fingerprint
from tokenreward_client import AsyncClient, BadArgument, ScorerInfo
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers._token_reward import padded

LEVELS = {"name": "rm", "type": "reward_model", "default_credit": "values", "options": {}}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> TokenService:
    return TokenService(monkeypatch)


def reward(*args: Any, **settings: Any) -> TokenReward:
    return TokenReward(AsyncClient("http://127.0.0.1:9"), *args, **settings)


class Tokenizer:
    """Each id is a letter; 0 ends the turn."""

    all_special_ids = (0,)
    eos_token_id = 0

    def get_vocab(self) -> dict[str, int]:
        return {"a": 1, "b": 2}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [chr(96 + id_) for id_ in ids]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(96 + id_) for id_ in ids if id_)


async def test_ids_go_as_they_are_and_a_mask_only_where_it_says_something(
    service: TokenService,
) -> None:
    ask = reward("dense", credit={"name": "uniform"})
    items = [ask.item([5, 6], [7, 8], [1, 1]), ask.item((5,), [7, 8, 9], [True, False, True])]
    vectors = await ask(items)
    assert [vector.tolist() for vector in vectors] == [[50, 51], [50, 0, 52]]
    assert service.calls == [
        (
            [
                {"prompt": [5, 6], "response": [7, 8]},
                {"prompt": [5], "response": [7, 8, 9], "mask": [1, 0, 1]},
            ],
            "dense",
            {"credit": {"name": "uniform"}},
        )
    ]


async def test_the_listing_is_asked_once_and_behind_the_first_answers(
    service: TokenService,
) -> None:
    service.listing = [ScorerInfo.model_validate(LEVELS)]
    ask = reward("rm")
    with pytest.raises(BadArgument, match="levels"):
        await ask([ask.item([5], [7])])
    assert len(service.calls) == 1  # a deployment that loads is waited for there
    ask = reward("rm", options={"red": True})
    for _ in range(3):
        await ask([ask.item([5], [7])])
    assert service.num_listings == 2
    assert service.waited_for == ["rm"]  # another deployment may be slow to say what it serves


async def test_ids_are_compared_with_the_policys_vocabulary(service: TokenService) -> None:
    ask = reward("dense", tokenizer=Tokenizer())
    await ask([ask.item([1], [2])])
    ((_, _, settings),) = service.calls
    assert settings == {"fingerprint": fingerprint({"a": 1, "b": 2})}


async def test_spans_go_for_a_scorer_with_another_tokenizer(service: TokenService) -> None:
    ask = reward("dense", tokenizer=Tokenizer(), by="spans")
    item = ask.item([{"role": "user", "content": "2+2?"}], [1, 2, 0])
    assert item["response"] == "ab"
    assert item["spans"] == [[0, 1], [1, 2], [2, 2]]
    assert item["finished"] is True
    [vector] = await ask([item])
    assert len(vector) == 3
    assert service.calls[0][2] == {}
    with pytest.raises(BadArgument, match="turns of tools"):
        ask.item("2+2?", [1, 2], [1, 0])


@pytest.mark.parametrize("by", ["ids", "spans"])
async def test_what_is_masked_whole_has_rewards_of_0_and_is_not_sent(
    service: TokenService, by: Any
) -> None:
    """A truncated response, as SkyRL's and DAPO's overlong filters leave it."""
    ask = reward("dense", tokenizer=Tokenizer(), by=by)
    prompt: Any = [5] if by == "ids" else "2+2?"
    masks = [[0, 0, 0], [1, 1], [0]]
    vectors = await ask([ask.item(prompt, [1, 2, 1][: len(mask)], mask) for mask in masks])
    first = 50.0 if by == "ids" else 0.0
    assert [vector.tolist() for vector in vectors] == [[0, 0, 0], [first, first + 1], [0]]
    assert all(vector.dtype == np.float32 for vector in vectors)
    ((items, _, _),) = service.calls
    assert len(items) == 1
    [nothing] = await ask([ask.item(prompt, [1], [0])])
    assert nothing.tolist() == [0]


async def test_ids_of_a_prompt_are_not_sent_to_a_scorer_with_another_tokenizer(
    service: TokenService,
) -> None:
    ask = reward("dense", tokenizer=Tokenizer(), by="spans")
    for prompt in ([1, 2], np.array([1, 2])):
        with pytest.raises(BadArgument, match="as text or messages"):
            ask.item(prompt, [1])
    with pytest.raises(BadArgument, match="tokenizer of the policy"):
        reward("dense", by="spans").item("2+2?", [1])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"by": "text"}, 'must be "ids" or "spans"'),
        ({"on_error": "return"}, "on_error"),
        ({"scorers": ["a", "b"]}, "several scorers need weights"),
    ],
)
def test_arguments_that_would_lose_a_reward_are_refused(arguments: Any, sentence: str) -> None:
    with pytest.raises(BadArgument, match=sentence):
        reward(**arguments)


def test_vectors_are_padded_on_the_right_and_masked_there() -> None:
    rewards, mask = padded([[1.0, 2.0], [3.0]], [[1, 0], [1]])
    assert rewards.tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert mask.tolist() == [[1, 0], [1, 0]]
    assert padded([], [])[0].shape == (0, 0)
