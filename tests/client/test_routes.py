"""Where a request goes: straight to the deployment that has all of it, else through the gateway."""

from __future__ import annotations

from typing import Any

import pytest

from edge import keyed, scores
from tokenreward_client import (
    AsyncClient,
    Client,
)

LISTING = {
    "scorers": [
        {"name": "endogenous", "type": "endogenous", "deployment": "sft", "limits": {"max_sequence_tokens": 4096}},
        {"name": "logprob", "type": "endogenous", "deployment": "sft"},
        {"name": "reward_model", "type": "reward_model", "deployment": "rm"},
    ]
}


def test_listing_that_fails_is_not_asked_for_on_every_call(edge: Any, items: Any) -> None:
    with Client(edge.url) as client:
        for _ in range(3):
            client.score(items(1))
    assert edge.num_listed == 1


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ({"scorer": "reward_model"}, "/d/rm/v1/rewards"),
        ({"scorer": "unlisted"}, "/v1/rewards"),
        ({}, "/d/sft/v1/rewards"),
    ],
)
def test_request_goes_straight_to_the_deployment(
    edge: Any, score: Any, items: Any, asked: dict[str, Any], path: str
) -> None:
    edge.listing = LISTING
    score(items(1), **asked)
    assert edge.paths == [path]


@pytest.mark.parametrize(
    ("names", "path"),
    [(["endogenous", "logprob"], "/d/sft/v1/rewards"), (["endogenous", "reward_model"], "/v1/rewards")],
)
def test_several_scorers_go_straight_only_to_one_deployment(
    edge: Any, score: Any, items: Any, names: list[str], path: str
) -> None:
    edge.listing = LISTING
    result = {"rewards": [1.0, 2.0]}
    edge.script.append(lambda body: edge.reply([keyed(0, **dict.fromkeys(names, result))]))
    score(items(1), scorers=names)
    assert edge.paths == [path]


def test_deployment_that_has_gone_is_reached_through_the_gateway(edge: Any, score: Any, items: Any) -> None:
    edge.listing = LISTING
    edge.script.append(edge.html(404))
    assert scores(score(items(1))) == [0]
    assert edge.paths == ["/d/sft/v1/rewards", "/v1/rewards"]


def test_kl_reference_on_another_deployment_needs_the_gateway(edge: Any, score: Any, items: Any) -> None:
    edge.listing = LISTING
    score(items(1), scorer="reward_model", credit={"kl": {"coef": 0.1, "reference": "logprob"}})
    assert edge.paths == ["/v1/rewards"]


def test_listing_is_asked_once(edge: Any, items: Any) -> None:
    edge.listing = LISTING
    with Client(edge.url) as client:
        client.score(items(1))
        edge.listing = None
        client.score(items(1))
    assert edge.paths == ["/d/sft/v1/rewards"] * 2


async def test_scorers_lists_what_the_server_says(edge: Any) -> None:
    edge.listing = LISTING
    with Client(edge.url) as client:
        found = client.scorers()
    async with AsyncClient(edge.url) as client:
        assert await client.scorers() == found
    assert [scorer.name for scorer in found] == ["endogenous", "logprob", "reward_model"]
    assert found[0].model_extra == {"limits": {"max_sequence_tokens": 4096}}
