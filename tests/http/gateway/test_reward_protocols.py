"""Trainers' and servers' own ways of asking for rewards: on a replica and on the gateway, with the
numbers of our own protocol."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from fakes import tiny
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.settings import ProtocolSettings

PLACES = pytest.mark.parametrize("place", ["replica", "gateway"])
QUESTION = [{"role": "user", "content": "2+2?"}]
ITEM = {"prompt": QUESTION, "response": "It is 4."}
CHAT = [*QUESTION, {"role": "assistant", "content": "It is 4."}]
TEXT = "<|user|>2+2?<|end|>\n<|assistant|>It is 4.<|end|>\n"  # the same in the template's words
UNFINISHED = TEXT.removesuffix("<|end|>\n")
RM = {
    "name": "rm",
    "task": "reward_model",
    "version": 3,
    "scorers": [{"type": "reward_model"}, {"type": "attention_dense"}],
}
ROUTES = {
    "reward_model": ScorerRoute("rm", "reward_model"),
    "attention_dense": ScorerRoute("rm", "attention_dense"),
}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Iterator[dict[str, Any]]:
    checkpoint = tiny.save(tmp_path_factory.mktemp("rm"), task="reward_model")
    with serve((RM, checkpoint)) as replicas:
        yield {**replicas, "folder": checkpoint}


@pytest.fixture
def opened(replicas: dict[str, Any], open_gateway: Any) -> Any:
    """Opens a client of the reward model's replica, or of the gateway."""

    @asynccontextmanager
    async def opened(place: str, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        if place == "gateway":
            async with open_gateway(replicas, ROUTES)(**changes) as client:
                yield client
            return
        url = replicas["url"] + "/d/rm"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield client

    return opened


def near(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6)


async def native(client: httpx.AsyncClient, *items: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"scorer": "reward_model", "items": list(items), **fields}
    answer = await client.post("/v1/rewards", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["items"]
    assert [item["error"] for item in results] == [None] * len(items)
    return results


async def scores(client: httpx.AsyncClient, *items: Any, **fields: Any) -> list[float]:
    return [item["score"] for item in await native(client, *items, **fields)]


async def ask(client: httpx.AsyncClient, path: str, body: Any, status: int = 200) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


# --- OpenRLHF


@PLACES
async def test_openrlhf_a_query_alone_is_a_conversation_and_labels_may_be_anything(
    opened: Any, place: str
) -> None:
    async with opened(place) as client:
        expected = await scores(client, ITEM, ITEM)
        alone = await ask(client, "/get_reward", {"query": [TEXT, UNFINISHED], "labels": {"a": 1}})
        single = await ask(client, "/get_reward", {"query": TEXT})
    assert alone["rewards"] == alone["scores"] == near(expected)  # end-of-turn is appended
    assert single["rewards"] == near(expected[:1])
    assert alone["extra_logs"] == {"version": [3, 3]}


# --- LLaMA-Factory


@PLACES
async def test_llama_factory_gets_a_score_per_message(opened: Any, place: str) -> None:
    async with opened(place) as client:
        expected = await scores(client, ITEM, {**ITEM, "finished": False})
        body = {"model": "model", "messages": [TEXT, UNFINISHED]}
        answer = await ask(client, "/v1/score/evaluation", body)
        single = await ask(client, "/v1/score/evaluation/", {"model": "model", "messages": TEXT})
    assert answer["scores"] == near(expected)
    assert answer["object"] == "score.evaluation"
    assert answer["model"] == "model"
    assert single["scores"] == near(expected[:1])


@PLACES
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [TEXT, "2+2? It is 4."]}, "messages[1]: prompt and response cannot"),
        ({"messages": [TEXT + "<|user|>So?<|end|>\n"]}, "told apart|goes on behind"),
        ({"messages": []}, "there are no messages"),
        ({"messages": [TEXT], "max_length": 9}, "nothing is truncated"),
        ({}, "it is required"),
    ],
    ids=["no turn", "a user's turn behind", "none", "truncated", "missing"],
)
async def test_llama_factory_is_refused_in_one_sentence_and_never_with_scores(
    opened: Any, place: str, fields: Any, words: str
) -> None:
    async with opened(place) as client:
        answer = await ask(client, "/v1/score/evaluation", {"model": "model", **fields}, 422)
    assert answer.keys() == {"detail"}
    assert any(word in answer["detail"] for word in words.split("|"))


# --- slime


@PLACES
async def test_slime_gets_a_number_or_with_a_reward_key_an_object(opened: Any, place: str) -> None:
    sample = {"prompt": QUESTION, "response": "It is 4.", "label": None}
    text = {"prompt": "2+2?", "response": "It is 4.", "label": "4"}
    async with opened(place) as client:
        (item,) = await native(client, ITEM, return_tokens=True)
        expected = await scores(client, {"prompt": "2+2?", "response": "It is 4."})
        number = await ask(client, "/remote_rm", sample)
        content = await ask(client, "/remote_rm/score", sample)
        raw = await ask(client, "/remote_rm/", text)
    assert number == near(item["score"])
    assert raw == near(expected[0])
    assert content.keys() == {"score", "token_rewards", "token_ids", "version"}
    assert content["score"] == near(item["score"])
    assert content["token_rewards"] == near(item["rewards"])
    assert content["token_ids"] == [token["id"] for token in item["tokens"]]
    assert content["version"] == 3


async def test_slime_gets_the_rewards_of_the_settings_credit(
    replicas: dict[str, Any], serve: Any, open_gateway: Any
) -> None:
    fields = {"options": {"red": True}, "credit": {"name": "values"}}
    plans = {"slime": ProtocolSettings(**fields)}
    with serve((RM, replicas["folder"]), plans=plans) as others:
        async with open_gateway(others, ROUTES)(plans=plans) as client:
            (item,) = await native(client, ITEM, **fields)
            sample = {"prompt": QUESTION, "response": "It is 4."}
            for url in ("/remote_rm/score", others["url"] + "/d/rm/remote_rm/score"):
                content = await ask(client, url, sample)
                assert content["token_rewards"] == near(item["rewards"])


@PLACES
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "response": ""}, "response"),
        ({"prompt": "a"}, "response"),
        ({"prompt": [{"role": "user"}], "response": "b"}, "prompt[0].content"),
        ({"prompt": 3, "response": "b"}, "prompt"),
    ],
)
async def test_slime_is_told_what_is_wrong_and_where(
    opened: Any, place: str, fields: Any, param: str
) -> None:
    async with opened(place) as client:
        answer = await ask(client, "/remote_rm", fields, 422)
    assert answer["error"]["param"].startswith(param)
    assert answer["error"]["message"]


# --- vLLM


@PLACES
@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings", "/pooling"])
async def test_vllm_a_text_ids_and_messages_get_the_raw_score(
    opened: Any, place: str, path: str
) -> None:
    ids = [4, 40, 50, 60, 70, 1]

    async def ask_for(given: Any) -> Any:
        fields = {"task": "classify"} if path == "/pooling" else {"use_activation": False}
        answer = await ask(client, path, {"model": "/any/rm", **given, **fields})
        assert answer["model"] == "/any/rm"
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
        key = {"/classify": "probs", "/v1/embeddings": "embedding", "/pooling": "data"}[path]
        return [entry[key][-1] for entry in answer["data"]]

    async with opened(place) as client:
        (finished,) = await scores(client, ITEM)
        (open_end,) = await scores(client, {**ITEM, "finished": False})
        (of_ids,) = await scores(client, {"prompt": ids[:2], "response": ids[2:]})
        assert await ask_for({"input": TEXT}) == near([finished])
        assert await ask_for({"input": [TEXT, UNFINISHED]}) == near([finished, open_end])
        assert await ask_for({"input": ids}) == near([of_ids])
        assert await ask_for({"input": [ids, ids]}) == near([of_ids] * 2)
        assert await ask_for({"messages": CHAT}) == near([finished])


@PLACES
async def test_embeddings_as_base64_are_float32(opened: Any, place: str) -> None:
    async with opened(place) as client:
        (score,) = await scores(client, ITEM)
        body = {"model": "rm", "input": TEXT, "encoding_format": "base64"}
        answer = await ask(client, "/v1/embeddings", body)
    (entry,) = answer["data"]
    numbers = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
    assert numbers.tolist() == near([score])


@PLACES
async def test_pooling_has_a_value_for_every_token_in_every_encoding(
    opened: Any, place: str
) -> None:
    rows = [[4, 40, 50, 60, 70, 1], [4, 41, 51], [7]]
    async with opened(place) as client:
        expected = []
        for row in rows:
            item = {"prompt": "", "response": row, "whole": "sequence"}
            (whole,) = await native(client, item, credit={"name": "values"})
            assert len(whole["rewards"]) == len(row)
            expected.append(np.array(whole["rewards"], dtype=np.float32)[:, None])
        (split,) = await native(
            client, {"prompt": rows[0][:1], "response": rows[0][1:]}, credit={"name": "values"}
        )
        np.testing.assert_allclose(expected[0][1:, 0], split["rewards"], atol=1e-6)
        body = {"model": "rm", "task": "token_classify", "input": rows}
        plain = (await ask(client, "/pooling", body))["data"]
        coded = (await ask(client, "/pooling", {**body, "encoding_format": "base64"}))["data"]
        swapped = {**body, "encoding_format": "base64", "endianness": "big"}
        big = (await ask(client, "/pooling", {**swapped, "embed_dtype": "float16"}))["data"]
        binary = await client.post("/pooling", json={**body, "encoding_format": "bytes"})
        bare = await client.post("/pooling", json={**body, "encoding_format": "bytes_only"})
    for entry, array in zip(plain, expected, strict=True):
        np.testing.assert_allclose(entry["data"], array, atol=1e-6)
    for entry, other, array in zip(coded, big, expected, strict=True):
        numbers = np.frombuffer(base64.b64decode(entry["data"]), "<f4")
        np.testing.assert_allclose(numbers[:, None], array, atol=1e-6)
        halves = np.frombuffer(base64.b64decode(other["data"]), ">f2")
        np.testing.assert_allclose(halves[:, None], array, rtol=1e-3, atol=1e-3)
    assert binary.headers["content-type"] == "application/octet-stream"
    assert binary.content == bare.content
    assert "metadata" not in bare.headers
    table = json.loads(binary.headers["metadata"])
    assert table["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    for entry, array in zip(table["data"], expected, strict=True):
        numbers = np.frombuffer(binary.content[entry["start"] : entry["end"]], "<f4")
        assert entry["shape"] == list(array.shape)
        np.testing.assert_allclose(numbers.reshape(entry["shape"]), array, atol=1e-6)


@PLACES
async def test_pooling_writes_a_table_that_any_header_can_hold_or_says_why_not(
    opened: Any, place: str
) -> None:
    body = {"model": "模型 é", "input": [[5]], "encoding_format": "bytes"}
    async with opened(place) as client:
        answer = await client.post("/pooling", json=body)
        error = (await ask(client, "/pooling", {**body, "model": "m" * 60_000}, 422))["error"]
        bare = {**body, "model": "m" * 60_000, "encoding_format": "bytes_only"}
        assert (await client.post("/pooling", json=bare)).content == answer.content
    assert answer.status_code == 200, answer.text
    assert json.loads(answer.headers["metadata"])["model"] == "模型 é"
    assert error["param"] == "encoding_format"
    assert "`bytes_only`" in error["message"]


@pytest.mark.parametrize("task", ["token_classify", "classify"])
async def test_pooling_refuses_a_value_that_float16_cannot_hold(
    replicas: Any, serve: Any, task: str
) -> None:
    scorer = {"type": "constant", "name": "large", "options": {"value": 1e5}}
    settings = {"name": "rm", "task": "reward_model", "scorers": [scorer]}
    plans = {"pooling": ProtocolSettings(scorer="large")}
    body = {"input": [[5]], "task": task, "encoding_format": "base64"}
    with serve((settings, replicas["folder"]), plans=plans) as served:
        async with httpx.AsyncClient(base_url=served["url"] + "/d/rm", timeout=20) as client:
            (entry,) = (await ask(client, "/pooling", body))["data"]
            refused = await ask(client, "/pooling", {**body, "embed_dtype": "float16"}, 422)
    assert np.frombuffer(base64.b64decode(entry["data"]), "<f4").tolist() == [1e5]
    assert refused["error"]["param"] == "embed_dtype"


@PLACES
async def test_pooling_reads_texts_and_messages_from_their_first_token(
    opened: Any, place: str
) -> None:
    async with opened(place) as client:
        (item,) = await native(
            client, {**ITEM, "whole": "sequence"}, credit={"name": "values"}, return_tokens=True
        )
        (chat,) = (await ask(client, "/pooling", {"messages": CHAT}))["data"]
        (text,) = (await ask(client, "/pooling", {"input": TEXT.removesuffix("\n")}))["data"]
    np.testing.assert_allclose(np.array(chat["data"])[:, 0], item["rewards"], atol=1e-6)
    np.testing.assert_allclose(text["data"], chat["data"], atol=1e-6)
    assert len(item["tokens"]) == len(chat["data"])


@PLACES
@pytest.mark.parametrize(
    ("first", "second"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
async def test_score_reads_a_prompt_and_its_responses(
    opened: Any, place: str, first: str, second: str
) -> None:
    items = [{"prompt": "2+2?", "response": text} for text in ("4", "5")]
    async with opened(place) as client:
        expected = await scores(client, *items)
        many = await ask(client, "/score", {"model": "x", first: "2+2?", second: ["4", "5"]})
        pairs = {"model": "x", first: ["2+2?", "2+2?"], second: ["4", "5"]}
        each = await ask(client, "/v1/score", pairs)
    for answer in (many, each):
        assert [entry["score"] for entry in answer["data"]] == near(expected)
        assert [entry["index"] for entry in answer["data"]] == [0, 1]


@PLACES
@pytest.mark.parametrize(
    ("path", "fields", "param", "words"),
    [
        ("/classify", {"input": "2+2?"}, "input[0]", "told apart"),
        ("/classify", {"input": [TEXT, "no"]}, "input[1]", "told apart"),
        ("/classify", {"input": TEXT, "use_activation": True}, "use_activation", "raw logits"),
        ("/classify", {"input": TEXT, "activation": True}, "activation", "raw logits"),
        (
            "/classify",
            {"input": TEXT, "truncate_prompt_tokens": 5},
            "truncate_prompt_tokens",
            "truncated",
        ),
        ("/classify", {"input": []}, "input", "no input"),
        ("/classify", {}, "input", "exactly one"),
        ("/classify", {"input": [TEXT, 3]}, "input[1]", "a valid string, got 3"),
        ("/classify", {"input": [[5], [6, 7.5]]}, "input[1][1]", "a valid integer, got 7.5"),
        ("/classify", {"input": 5}, "input", "got 5"),
        ("/classify", {"messages": QUESTION}, "messages[0].role", "assistant"),
        ("/v1/embeddings", {"input": TEXT, "dimensions": 8}, "dimensions", "one number"),
        (
            "/v1/embeddings",
            {"input": TEXT, "encoding_format": "bytes"},
            "encoding_format",
            "base64",
        ),
        ("/pooling", {"input": TEXT, "task": "embed"}, "task", "token_classify"),
        ("/pooling", {"input": [[5], [99999]]}, "input[1]", "ids 0 to"),
        ("/pooling", {"input": "a", "embed_dtype": "fp8"}, "embed_dtype", "float16"),
        ("/score", {"text_1": "a"}, "text_1", "required"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1", "2 for 1"),
        ("/score", {"text_1": "a", "text_2": "b", "softmax": True}, "softmax", "raw logits"),
        (
            "/classify",
            {"messages": CHAT, "add_generation_prompt": True},
            "add_generation_prompt",
            "the scored one",
        ),
        ("/score", {"queries": "a", "documents": ["b", ""]}, "documents[1]", "no tokens"),
    ],
)
async def test_vllm_shapes_are_refused_in_one_sentence(
    opened: Any, place: str, path: str, fields: Any, param: str, words: str
) -> None:
    async with opened(place) as client:
        answer = await ask(client, path, {"model": "rm", **fields}, 422)
    error = answer["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert error["code"] == 422


# --- NeMo-Gym


def verification(text: str, **params: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "role": "assistant", "content": [part], "id": "m"}
    return {
        "responses_create_params": {"input": QUESTION, **params},
        "response": {"id": "r", "output": [message], "model": "policy"},
        "answer": 4,
    }


@PLACES
async def test_nemo_gym_gets_its_own_body_back_with_the_reward(opened: Any, place: str) -> None:
    body = verification("It is 4.")
    said = verification("It is 4.", input="2+2?")
    thought = {"type": "reasoning", "id": "t", "summary": []}
    said["response"]["output"].insert(0, thought)
    ruled = verification("It is 4.", instructions="Be brief.")
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    async with opened(place) as client:
        expected = await scores(client, ITEM, {**ITEM, "prompt": system})
        answer = await ask(client, "/verify", body)
        for other, score in ((said, expected[0]), (ruled, expected[1])):
            assert (await ask(client, "/verify", other))["reward"] == near(score)
    reward = answer["reward"]
    assert reward == near(expected[0])
    assert answer == {**body, "reward": reward, "reward_components": {"reward_model": reward}}


@PLACES
@pytest.mark.parametrize("number", ["123456789012345678901234567890", "NaN", "-Infinity", "0.10"])
async def test_nemo_gym_gets_the_numbers_of_its_body_as_they_came(
    opened: Any, place: str, number: str
) -> None:
    body = json.dumps(verification("It is 4.")).replace('"answer": 4', f'"answer": [{number}]')
    async with opened(place) as client:
        answer = await client.post("/verify", content=body)
    assert answer.status_code == 200, answer.text
    echoed = json.loads(answer.text, parse_constant=str, parse_int=str)["answer"]
    assert echoed == json.loads(f"[{number}]", parse_constant=str, parse_int=str)


@PLACES
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"output": []}, "response.output"),
        ({"output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "response.out"),
        ({"output": [{"role": "assistant", "content": [{"type": "image"}]}]}, "response.output[0]"),
        ({"output": [{"role": "assistant", "content": ""}]}, "response.output"),
        ({"output": [{"type": "web_search_call"}, {"role": "assistant", "content": "a"}]}, "respo"),
    ],
)
async def test_nemo_gym_is_refused_with_fastapis_detail_and_no_reward(
    opened: Any, place: str, change: Any, param: str
) -> None:
    body = verification("x")
    body["response"] |= change
    async with opened(place) as client:
        answer = await ask(client, "/verify", body, 422)
    assert answer.keys() == {"detail"}
    assert answer["detail"]["param"].startswith(param)


@PLACES
async def test_nemo_gym_may_open_a_session_before_and_newer_sessions_are_refused(
    opened: Any, place: str
) -> None:
    newer = {"episode_id": "e", "task_id": "t", "verification_input": verification("x")}
    async with opened(place) as client:
        for body in ({}, {"responses_create_params": {"input": QUESTION}}):
            assert await ask(client, "/seed_session", body) == {}
        refusal = await ask(client, "/verify", newer, 422)
    assert refusal["detail"]["param"] == "responses_create_params"
