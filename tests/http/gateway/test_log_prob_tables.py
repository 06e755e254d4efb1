"""Top-k tokens, ranks and candidates over HTTP: the same from a replica, through the gateway and
merged by it, in every encoding, and as the client's arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from fakes import tiny
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.wire import decode_table
from tokenreward.wire.media import JSON, MSGPACK
from tokenreward.wire.reply import INTEGER_TABLES, TABLES
from tokenreward_client import AsyncClient

LM = {"name": "lm", "task": "causal_lm", "scorers": [{"type": "logprob"}]}
RM = {"name": "rm", "task": "reward_model", "scorers": [{"type": "reward_model"}]}
ROUTES = {
    "logprob": ScorerRoute("lm", "logprob"),
    "reward_model": ScorerRoute("rm", "reward_model"),
}
ITEMS = [
    {"prompt": [5, 6, 7], "response": [8, 90, 31, 4]},
    {"prompt": [5, 6, 7], "response": [9]},
]
OPTIONS = {"top_k": 4, "candidates": [300, 7]}
SHAPES = {"top_logprobs": 4, "top_token_ids": 4, "ranks": 1, "candidate_logprobs": 2}


@pytest.fixture(scope="module")
def served(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folders = [
        tiny.save(tmp_path_factory.mktemp(each["name"]), task=each["task"]) for each in (LM, RM)
    ]
    with serve((LM, folders[0]), (RM, folders[1])) as replicas:
        yield replicas


def tables(result: dict[str, Any], num_tokens: int) -> dict[str, np.ndarray]:
    """Each table of a result [tokens, k], from whatever encoding."""
    found = {}
    for name in TABLES:
        table = decode_table(result[name], num_rows=num_tokens, is_integer=name in INTEGER_TABLES)
        found[name] = table.reshape(num_tokens, SHAPES[name])
    return found


async def test_every_encoding_and_every_way_give_the_same_tables(
    served: Any, open_gateway: Any
) -> None:
    keyed = {
        "scorers": ["logprob", "reward_model"],
        "items": ITEMS,
        "options": {"logprob": OPTIONS},
    }
    alone = {"scorer": "logprob", "items": ITEMS, "options": OPTIONS}
    async with open_gateway(served, ROUTES)() as client:

        async def ask(body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
            answer = await client.post("/v1/rewards", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            load = MSGPACK.load if headers else JSON.load
            return load(answer.content)["items"]

        results = {
            "float": await ask(alone),
            "base64": await ask({**alone, "encoding_format": "base64"}),
            "msgpack": await ask(alone, accept="application/msgpack"),
        }
        for encoding in ("float", "base64"):
            items = await ask({**keyed, "encoding_format": encoding})
            results[f"merged {encoding}"] = [item["scorers"]["logprob"] for item in items]
    truth = [
        tables(result, len(item["response"]))
        for result, item in zip(results["float"], ITEMS, strict=True)
    ]
    assert np.array(results["float"][0]["top_logprobs"]).shape == (4, 4)
    assert isinstance(results["base64"][0]["top_token_ids"], str)
    assert isinstance(results["msgpack"][0]["ranks"], bytes)
    for items in results.values():
        for result, item, expected in zip(items, ITEMS, truth, strict=True):
            for name, table in tables(result, len(item["response"])).items():
                np.testing.assert_allclose(table, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wire", ["json", "msgpack"])
async def test_the_client_has_them_as_arrays(served: Any, open_gateway: Any, wire: Any) -> None:
    async with (
        open_gateway(served, ROUTES)() as http,
        AsyncClient(str(http.base_url), wire=wire) as client,
    ):
        first, second = await client.score(ITEMS, scorer="logprob", options=OPTIONS)
        (plain, _) = await client.score(ITEMS, scorer="logprob")
    assert first.top_logprobs.shape == first.top_token_ids.shape == (4, 4)
    assert second.candidate_logprobs.shape == (1, 2)
    assert (first.top_logprobs.dtype, first.top_token_ids.dtype) == (np.float32, np.int32)
    assert first.ranks.shape == (4,)
    for rank, row, reward in zip(first.ranks, first.top_logprobs, first.rewards, strict=True):
        if rank <= 4:
            assert row[rank - 1] == pytest.approx(float(reward), abs=1e-6)
    assert (plain.top_logprobs, plain.ranks) == (None, None)


async def test_a_request_without_tables_has_no_field_for_them(
    served: Any, open_gateway: Any
) -> None:
    body = {"scorer": "logprob", "items": ITEMS[:1]}
    async with open_gateway(served, ROUTES)() as client:
        item = (await client.post("/v1/rewards", json=body)).json()["items"][0]
        packed = await client.post(
            "/v1/rewards", json=body, headers={"accept": "application/msgpack"}
        )
    assert set(item) & set(TABLES) == set()
    assert set(msgspec.msgpack.decode(packed.content)["items"][0]) & set(TABLES) == set()


async def test_a_scorer_with_tables_by_default_is_a_reference_all_the_same(
    serve: Any, open_gateway: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Spans pass between the two, and no table is made for them."""
    settings = {**LM, "scorers": [{"type": "logprob", "options": {"top_k": 3}}]}
    folders = [
        tiny.save(tmp_path_factory.mktemp("reference"), task="causal_lm"),
        tiny.save(tmp_path_factory.mktemp("rewards"), task="reward_model"),
    ]
    item = {
        "prompt": "2+2?",
        "response": "It is 4.",
        "spans": [[0, 2], [2, 8]],
        "policy_logprobs": [-1.0, -2.0],
    }
    credit = {"kl": {"coef": 0.1, "reference": "logprob"}}
    body = {"scorer": "reward_model", "items": [item], "credit": credit}
    with serve((settings, folders[0]), (RM, folders[1])) as replicas:
        async with open_gateway(replicas, ROUTES)() as client:
            answer = (await client.post("/v1/rewards", json=body)).json()
    assert answer["items"][0]["error"] is None
    assert len(answer["items"][0]["rewards"]) == 2
