"""Reasoning steps pass the gateway as the deployment gave them, forwarded or merged with other
deployments' results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenreward_client import AsyncClient

ITEM: dict[str, Any] = {
    "prompt": "2+2?",
    "response": "It is 4.\nNo doubt.",
    "spans": [[0, 3], [3, 9], [9, 18]],
}


@pytest.mark.parametrize("names", [["process"], ["endogenous", "process"], ["process", "two"]])
async def test_steps_reach_the_client_from_every_road(gateway: Any, names: list[str]) -> None:
    async with gateway() as client:
        alone = (
            await client.post("/v1/rewards", json={"scorer": "process", "items": [ITEM]})
        ).json()["items"][0]
        reply = (
            await client.post("/v1/rewards", json={"scorers": names, "items": [ITEM] * 2})
        ).json()
        async with AsyncClient(str(client.base_url)) as ours:
            answers = await ours.score([ITEM] * 2, scorers=names)
    assert alone["step_ids"] == [0, 0, 1]
    assert len(alone["step_scores"]) == 2
    for item, answer in zip(reply["items"], answers, strict=True):
        result = item["scorers"]["process"]
        assert result["step_ids"] == alone["step_ids"]
        np.testing.assert_allclose(result["step_scores"], alone["step_scores"], atol=1e-6)
        np.testing.assert_allclose(
            answer.scorers["process"].step_scores, alone["step_scores"], atol=1e-6
        )
        assert answer.scorers["process"].step_ids.tolist() == alone["step_ids"]
        assert all(
            "step_scores" not in item["scorers"][name] for name in names if name != "process"
        )


async def test_a_combination_has_rewards_and_no_steps_of_its_own(gateway: Any) -> None:
    body = {
        "scorers": ["process", "endogenous"],
        "combine": {"process": 1.0, "endogenous": 0.0},
        "items": [ITEM],
    }
    async with gateway() as client:
        (item,) = (await client.post("/v1/rewards", json=body)).json()["items"]
    np.testing.assert_allclose(item["rewards"], item["scorers"]["process"]["rewards"], atol=1e-6)
    assert item.get("step_scores") is None
    assert item["scorers"]["process"]["step_ids"] == [0, 0, 1]
