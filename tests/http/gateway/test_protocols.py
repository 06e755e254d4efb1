"""Other programs' protocols, on a replica and on the gateway: the numbers of our own, and failures
in their own form."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from fakes import tiny
from fakes.guide import GUIDE
from fakes.pages import code_blocks
from tokenreward.http import protocols
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.request_limits import Limits
from tokenreward.wire.paths import REWARDS_PATH

PAIRS = [("2+2?", "It is 4."), ("<s>Why?", " Because</s>"), ("", "Yes")]
BATCH = {
    "query": [prompt + response for prompt, response in PAIRS],
    "prompts": [prompt for prompt, _ in PAIRS],
    "labels": ["4", None, {"any": "thing"}],
}
NATIVE = {
    "scorer": "reward_model",
    "items": [{"prompt": prompt, "response": response} for prompt, response in PAIRS],
}

PLACES = pytest.mark.parametrize("place", ["replica", "gateway"])


@pytest.fixture
def opened(gateway: Any, deployments: dict[str, Any]) -> Any:
    """Opens a client of the reward model's replica, or of the gateway."""

    @asynccontextmanager
    async def opened(place: str, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        if place == "gateway":
            async with gateway(**changes) as client:
                yield client
            return
        url = deployments["url"] + "/d/rm"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield client

    return opened


async def ask(client: httpx.AsyncClient, body: Any, status: int = 200) -> dict[str, Any]:
    response = await client.post("/get_reward", json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return dict(response.json())


@PLACES
async def test_openrlhf_gets_the_scores_of_the_reward_model_to_the_bit(
    opened: Any, place: str
) -> None:
    async with opened(place) as client:
        native = (await client.post(REWARDS_PATH, json=NATIVE)).json()
        reply = await ask(client, BATCH)
    scores = [item["score"] for item in native["items"]]
    assert None not in scores
    assert reply == {"rewards": scores, "scores": scores, "extra_logs": {"version": [3, 3, 3]}}


@PLACES
async def test_openrlhf_one_query_at_a_time_gets_one_number(opened: Any, place: str) -> None:
    async with opened(place) as client:
        alone = {**NATIVE, "items": NATIVE["items"][:1]}
        native = (await client.post(REWARDS_PATH, json=alone)).json()
        reply = await ask(client, {key: values[:1] for key, values in BATCH.items()})
    assert reply["rewards"] == [native["items"][0]["score"]]


@PLACES
async def test_openrlhf_sends_empty_batches_to_its_other_urls(opened: Any, place: str) -> None:
    async with opened(place) as client:
        reply = await ask(client, {"query": [], "prompts": [], "labels": []})
    assert reply == {"rewards": [], "scores": [], "extra_logs": {}}


@PLACES
@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"query": ["a b", "b c", "Yes"], "prompts": ["a", "a", ""]}, 422, "invalid_field", 1),
        ({"query": ["a", "b"], "prompts": ["a"]}, 422, "invalid_field", "prompts"),
        ({"query": ["a", 3], "prompts": ["a", "b"]}, 422, "invalid_field", 1),
        ({"query": ["ab"]}, 422, "invalid_field", 0),
        ({"query": ["ab", "b"], "prompts": ["a", "b"]}, 422, "invalid_field", 1),
        ({"query": ["ab"] * 9, "prompts": ["a"] * 9}, 413, "too_many_items", "items"),
        ([1], 400, "malformed_body", None),
    ],
    ids=["no prompt in front", "lengths", "a number", "no prompts", "empty", "many", "a list"],
)
async def test_openrlhf_is_refused_in_the_form_of_its_own_server_and_never_with_a_number(
    opened: Any, place: str, fields: Any, status: int, code: str, param: Any
) -> None:
    async with opened(place) as client:
        reply = await ask(client, fields, status)
    assert reply.keys() == {"detail"}
    where = f"query[{param}]" if isinstance(param, int) else param
    assert (reply["detail"]["code"], reply["detail"]["param"]) == (code, where)
    assert reply["detail"]["message"]


async def test_the_same_batch_is_refused_in_the_same_words_by_replica_and_gateway(
    opened: Any,
) -> None:
    replies = []
    for place in ("replica", "gateway"):
        async with opened(place) as client:
            replies.append(await ask(client, {"query": ["ab", "b"], "prompts": ["a", "b"]}, 422))
    assert replies[0] == replies[1]
    assert "empty_response" in replies[0]["detail"]["message"]


async def test_openrlhf_is_told_where_no_reward_model_is_served(deployments: Any) -> None:
    async with httpx.AsyncClient(base_url=deployments["url"] + "/d/lm", timeout=20) as client:
        reply = await ask(client, BATCH, 404)
    assert reply["detail"]["code"] == "unknown_scorer"
    assert "`reward_model`" in reply["detail"]["message"]


async def test_openrlhf_without_key_or_deployment_is_refused_in_its_form(opened: Any) -> None:
    limits = Limits(
        max_body_bytes=10_000,
        max_request_items=8,
        request_timeout_s=20,
        api_keys=(SecretStr("sesame"),),
    )
    async with opened("gateway", limits=limits) as client:
        locked = await client.post("/get_reward", json=BATCH)
    async with opened("gateway", loaded={"lm": {"r1": []}}) as client:
        loading = await client.post("/get_reward", json=BATCH)
        text = (await client.get("/metrics")).text
    assert (locked.status_code, locked.json()["detail"]["code"]) == (401, "unauthorized")
    assert (loading.status_code, loading.json()["detail"]["code"]) == (503, "loading")
    assert loading.headers["retry-after"] == "2"
    assert 'tokenreward_request_seconds_count{deployment="gateway",replica="gateway-1"} 1.0' in text


async def test_the_first_reward_model_of_all_deployments_answers_at_the_gateway(
    deployments: Any, open_gateway: Any
) -> None:
    routes = {
        "one": ScorerRoute("lm", "constant"),
        "reward_model": ScorerRoute("rm", "reward_model"),
        "later": ScorerRoute("lm", "reward_model"),
    }
    async with open_gateway(deployments, routes)() as client:
        assert len((await ask(client, BATCH))["rewards"]) == 3


@pytest.fixture
def guide_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol of CONTRIBUTING.md, as a file of the protocols' folder."""
    (code,) = (block for block in code_blocks(GUIDE, "python") if "Protocol" in block)
    (tmp_path / "pairs.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, f"{protocols.__name__}.pairs", None)
    del sys.modules[f"{protocols.__name__}.pairs"]


@pytest.mark.usefixtures("guide_protocol")
async def test_the_protocol_of_the_guide_is_one_file_and_mounted_everywhere(
    serve: Any, open_gateway: Any, tmp_path: Path
) -> None:
    settings = {"name": "rm", "task": "reward_model", "scorers": [{"type": "reward_model"}]}
    routes = {"reward_model": ScorerRoute("rm", "reward_model")}
    checkpoint = tiny.save(tmp_path / "rm", task="reward_model")
    prompt, response = PAIRS[0]
    with serve((settings, checkpoint)) as replicas:
        async with open_gateway(replicas, routes)() as client:
            native = {**NATIVE, "items": NATIVE["items"][:1]}
            expected = (await client.post(REWARDS_PATH, json=native)).json()["items"][0]["score"]
            for url in ("/score_pair", f"{replicas['url']}/d/rm/score_pair"):
                body = {"prompt": prompt, "response": response}
                assert (await client.post(url, json=body)).json() == {"score": expected}
                empty = await client.post(url, json={**body, "response": ""})
                assert (empty.status_code, empty.json().keys()) == (422, {"why"})
                wrong = await client.post(url, content=b"{")
                assert (wrong.status_code, wrong.json().keys()) == (400, {"why"})


def test_every_protocol_has_paths_of_its_own() -> None:
    names = {module.stem for module in Path(protocols.__path__[0]).glob("[!_]*.py")}
    found = protocols.find_protocols()
    classes = set(found.values())
    assert {each.name for each in classes} == names
    assert len(classes) == len(names)
    assert sum(len(each.paths) for each in classes) == len(found)
