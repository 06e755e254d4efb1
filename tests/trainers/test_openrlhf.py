"""OpenRLHF's own client of a remote reward model, against the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import published
from tokenreward_client import BadArgument, Client
from tokenreward_client.trainers.openrlhf import reward_function

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


async def test_the_reward_file_gives_the_native_scores(
    agent: Any, url: str, scores: list[float], tmp_path: Path
) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text(
        "from tokenreward_client import Client\n"
        "from tokenreward_client.trainers.openrlhf import reward_function\n"
        f"reward_func = reward_function(Client({url!r}), 'reward_model')\n"
    )
    executor = agent.SingleTurnAgentExecutor(str(file))
    replies = await executor._fetch_rewards_via_func(QUERIES, [PROMPT] * 2, [None] * 2)
    assert [reply["rewards"] for reply in replies] == [
        pytest.approx([score], abs=1e-6) for score in scores
    ]
    # What becomes of it: one number per sample, and numbers as logs.
    for reply in replies:
        assert torch.tensor([reply["scores"]]).shape == (1, 1)
        assert torch.tensor([reply["extra_logs"]["version"]]).dtype == torch.int64


def test_a_query_that_does_not_begin_with_its_prompt_is_refused(client: Client) -> None:
    with pytest.raises(BadArgument, match="must begin with its prompt"):
        reward_function(client, "reward_model")(["abc"], ["b"], [None])


async def test_one_bad_query_among_good_ones_fails_the_call_and_invents_nothing(
    agent: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    async def no_pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(agent.asyncio, "sleep", no_pause)
    executor = agent.SingleTurnAgentExecutor(f"{url}/get_reward")
    with pytest.raises(RuntimeError, match="for 5 times"):
        await executor._fetch_rewards_via_http([*QUERIES, "else"], [PROMPT] * 3, [None] * 3)
    assert pauses == [1] * 5
