"""OpenRLHF's own client of a remote reward model, against the service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fakes import published
from tokenreward_client import Client

SITE = published.site()
PROMPT, RESPONSES = "user: When?\n", ["On 27 May 2029.", "Never."]
QUERIES = [PROMPT + response for response in RESPONSES]


@pytest.fixture(scope="module")
def agent() -> Iterator[Any]:
    with published.importable(SITE, missing=("pylatexenc", "deepspeed", "flash_attn")):
        from openrlhf.utils import agent

        yield agent


@pytest.fixture
def scores(client: Client) -> list[float]:
    """The native scores."""
    answers = client.score([(PROMPT, response) for response in RESPONSES], "reward_model")
    return [answer.score for answer in answers]


@pytest.mark.parametrize("num_urls", [1, 2, 3])
async def test_rewards_over_http_are_the_native_scores(
    agent: Any, url: str, scores: list[float], num_urls: int
) -> None:
    executor = agent.SingleTurnAgentExecutor([f"{url}/get_reward"] * num_urls)
    replies = await executor._fetch_rewards_via_http(QUERIES, [PROMPT] * 2, [None, {"any": 1}])
    assert len(replies) == min(num_urls, len(QUERIES))
    for key in ("rewards", "scores"):
        values = [value for reply in replies for value in reply[key]]
        assert values == pytest.approx(scores, abs=1e-6)


async def test_a_deployments_own_url_will_do(agent: Any, url: str, scores: list[float]) -> None:
    executor = agent.SingleTurnAgentExecutor(f"{url}/d/rm/get_reward")
    (reply,) = await executor._fetch_rewards_via_http(QUERIES[:1], [PROMPT], ["a label"])
    assert reply["rewards"] == pytest.approx(scores[:1], abs=1e-6)
