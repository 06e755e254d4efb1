"""RTO's reward (Zhong et al. 2024, 2404.18922) as docs/scorers.md has it: one request, one combined
vector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fakes import oracle, tiny
from fakes.pages import code_blocks, page
from tokenreward.http.gateway.scorer_routes import ScorerRoute

DPO_BETA, DPO_CLIP, KL_COEF, SCORE_CLIP = 0.05, 0.05, 0.01, 10.0
PAIR = {"name": "dpo", "task": "causal_lm", "scorers": [{"type": "implicit"}]}
RM = {"name": "rm", "task": "reward_model", "scorers": [{"type": "reward_model"}]}
ROUTES = {
    "implicit": ScorerRoute("dpo", "implicit"),
    "reward_model": ScorerRoute("rm", "reward_model"),
}


@pytest.fixture(scope="module")
def replicas(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("rto")
    reference = {"reference_checkpoint": str(tiny.save(folder / "ref", seed=0))}
    dpo, rm = tiny.save(folder / "dpo", seed=1), tiny.save(folder / "rm", task="reward_model")
    with serve(({**PAIR, **reference}, dpo), (RM, rm)) as running:
        yield running


@pytest.fixture
def gateway(replicas: dict[str, Any], open_gateway: Any) -> Any:
    return open_gateway(replicas, ROUTES)


@pytest.fixture(scope="module")
def body() -> dict[str, Any]:
    """The request on the page of scorers."""
    requests = code_blocks(page("docs/scorers.md"), "json")
    written = [text for text in requests if "implicit" in text]
    assert len(written) == 1
    return dict(json.loads(written[0]))


def truth(what: oracle.Response, owner: list[int], item: dict[str, Any]) -> np.ndarray:
    """The paper's r_t in float64, from the models' own forwards, summed over units."""
    dpo, ref = (oracle.double(tiny.model("llama", seed=seed)) for seed in (1, 0))
    ratio = np.subtract(
        *(oracle.log_probs(oracle.logits(m, what.ids), what, temperature=1.0) for m in (dpo, ref))
    )
    rewards = np.zeros(len(item["policy_logprobs"]))
    np.add.at(rewards, owner, np.clip(DPO_BETA * ratio, -DPO_CLIP, DPO_CLIP))
    rewards -= KL_COEF * (np.array(item["policy_logprobs"]) - np.array(item["ref_logprobs"]))
    score = oracle.head_values(oracle.double(tiny.model("llama", "reward_model")), what.ids)[-1]
    rewards[-1] += np.clip(score, -SCORE_CLIP, SCORE_CLIP)
    return rewards


async def test_the_pages_request_gives_rtos_reward_per_span(
    gateway: Any, body: dict[str, Any]
) -> None:
    (item,) = body["items"]
    async with gateway() as client:
        reply = (await client.post("/v1/rewards", json={**body, "return_tokens": True})).json()
    (got,) = reply["items"]
    tokens, ends = got["tokens"], [end for _, end in item["spans"]]
    owner = [next((i for i, end in enumerate(ends) if t["span"][1] <= end), 2) for t in tokens]
    prompt = tiny.tokenizer()(item["prompt"], add_special_tokens=False)["input_ids"]
    what = oracle.Response(np.array(prompt), np.array([token["id"] for token in tokens]))
    np.testing.assert_allclose(got["rewards"], truth(what, owner, item), atol=1e-4)


async def test_ids_give_it_per_token(gateway: Any, body: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    what = oracle.Response(generator.integers(3, 320, size=9), generator.integers(3, 320, size=21))
    policy, ref = (generator.uniform(-4, 0, size=21).tolist() for _ in range(2))
    item = {"prompt": what.prompt.tolist(), "response": what.response.tolist()}
    item |= {"policy_logprobs": policy, "ref_logprobs": ref}
    async with gateway() as client:
        reply = (await client.post("/v1/rewards", json={**body, "items": [item]})).json()
    (got,) = reply["items"]
    expected = truth(what, list(range(21)), item)
    np.testing.assert_allclose(got["rewards"], expected, atol=1e-4)
    assert {"implicit", "reward_model"} == set(got["scorers"])
    assert got["scorers"]["implicit"]["rewards"] != got["rewards"]
