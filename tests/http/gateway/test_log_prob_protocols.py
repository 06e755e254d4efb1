"""The log-probs of sequences in the shapes of SGLang, vLLM, ms-swift and TRL, on a replica and on
the gateway: the numbers of our own API, and failures in each program's own form."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fakes import tiny
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.wire.paths import REWARDS_PATH

LM = {
    "name": "lm",
    "task": "causal_lm",
    "version": 4,
    "scorers": [{"type": "endogenous"}, {"type": "logprob"}],
}
BARE = {"name": "bare", "task": "causal_lm", "scorers": [{"type": "endogenous", "name": "bare"}]}
ROUTES = {"endogenous": ScorerRoute("lm", "endogenous"), "logprob": ScorerRoute("lm", "logprob")}
PLACES = pytest.mark.parametrize("place", ["replica", "gateway"])
LONG, SHORT = [5, 90, 17, 40, 41, 200, 7], [9, 8]
K = 3
EXACT = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def served(serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tiny.save(tmp_path_factory.mktemp("lm"))
    with serve((LM, folder), (BARE, folder)) as replicas:
        yield {**replicas, "folder": folder}


@pytest.fixture
def opened(served: Any, open_gateway: Any) -> Any:
    """Opens a client of the language model's replica, of the gateway, or of the replica `bare`,
    whose scorer gives log-probs of a sequence's own tokens alone."""

    @asynccontextmanager
    async def opened(place: str) -> AsyncIterator[httpx.AsyncClient]:
        if place == "gateway":
            async with open_gateway(served, ROUTES)() as client:
                yield client
            return
        name = "lm" if place == "replica" else place
        url = f"{served['url']}/d/{name}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            yield client

    return opened


async def post(client: httpx.AsyncClient, path: str, body: Any, status: int = 200) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert "NaN" not in answer.text
    return json.loads(answer.text, object_pairs_hook=without_repeated_keys)


def without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A token that is among the most likely ones has one entry."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


class Truth:
    """What our own API says of a sequence: its numbers at all places but the first."""

    def __init__(self, ids: list[int], result: dict[str, Any]) -> None:
        self.ids = ids
        self.log_probs = np.array(result["rewards"])
        self.ranks = result["ranks"]
        self.top_ids, self.top = result["top_token_ids"], np.array(result["top_logprobs"])
        self.candidates = result.get("candidate_logprobs")


async def native(
    client: httpx.AsyncClient, ids: list[int], *, temperature: float = 1.0, k: int = K
) -> Truth:
    options = {"temperature": temperature, "top_k": k, "candidates": [7, 300]}
    item = {"prompt": ids[:1], "response": ids[1:]}
    body = {"scorer": "logprob", "items": [item], "options": options}
    return Truth(ids, (await post(client, REWARDS_PATH, body))["items"][0])


def assert_vllm(entries: list[Any], truth: Truth, k: int) -> None:
    """An entry per token: its own first, then the k most likely ones, in the order of ranks."""
    assert len(entries) == len(truth.ids)
    assert entries[0] is None
    for place, entry in enumerate(entries[1:]):
        own = truth.ids[place + 1]
        first, *others = entry
        assert first == str(own)
        assert entry[first]["rank"] == truth.ranks[place]
        np.testing.assert_allclose(entry[first]["logprob"], truth.log_probs[place], **EXACT)
        expected = [str(token) for token in truth.top_ids[place][:k] if token != own]
        assert others == expected
        assert {str(token) for token in truth.top_ids[place][:k]} <= set(entry)
        for rank, (token, value) in enumerate(
            zip(truth.top_ids[place][:k], truth.top[place][:k], strict=True), start=1
        ):
            assert entry[str(token)]["rank"] == rank
            # Tiles of another batch are rounded otherwise; logits are of order 10.
            np.testing.assert_allclose(entry[str(token)]["logprob"], value, rtol=0, atol=1e-5)


@PLACES
@pytest.mark.parametrize("k", [0, 1, 128])
async def test_vllms_completions_have_an_entry_per_token_of_several_prompts(
    opened: Any, place: str, k: int
) -> None:
    body = {
        "model": "whatever",
        "prompt": [LONG, [11], SHORT],
        "max_tokens": 1,
        "temperature": 0.7,
        "prompt_logprobs": k,
    }
    async with opened(place) as client:
        answer = await post(client, "/v1/completions", body)
        truths = [await native(client, ids, temperature=0.7, k=128) for ids in (LONG, SHORT)]
    assert any(rank <= 128 for rank in truths[0].ranks)
    assert (answer["object"], answer["model"]) == ("text_completion", "whatever")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in answer["choices"]} == {""}
    long, single, short = (choice["prompt_logprobs"] for choice in answer["choices"])
    assert single == [None]
    assert_vllm(long, truths[0], k)
    assert_vllm(short, truths[1], k)
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}


@PLACES
async def test_vllms_completions_take_ids_alone_and_text_and_show_their_tokens(
    opened: Any, place: str
) -> None:
    text = "2+2? It is 4."
    body = {"max_tokens": 0, "prompt_logprobs": 2, "return_token_ids": True}
    async with opened(place) as client:
        (of_ids,) = (await post(client, "/v1/completions", {**body, "prompt": LONG}))["choices"]
        answer = await post(client, "/v1/completions", {**body, "prompt": [text, "Yes, no"]})
        first, second = answer["choices"]
        ids = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
        assert first["prompt_token_ids"][-len(ids) :] == ids  # behind a BOS, if there is one
        for choice in (of_ids, first, second):
            truth = await native(client, choice["prompt_token_ids"])
            assert_vllm(choice["prompt_logprobs"], truth, 2)


@PLACES
async def test_vllms_token_route_gives_the_sequences_own_token_first(
    opened: Any, place: str
) -> None:
    sampling = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1}
    body = {"model": "teacher", "token_ids": LONG, "sampling_params": sampling}
    async with opened(place) as client:
        answer = await post(client, "/inference/v1/generate", body)
        truth = await native(client, LONG)
        alone = await post(client, "/inference/v1/generate", {**body, "token_ids": [4]})
    assert_vllm(answer["prompt_logprobs"], truth, 1)
    assert answer["choices"][0]["token_ids"] == []
    assert alone["prompt_logprobs"] == [None]
    values = [next(iter(entry.values()))["logprob"] for entry in answer["prompt_logprobs"][1:]]
    np.testing.assert_allclose(values, truth.log_probs, **EXACT)


def sglang(**fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False}
    body = {"sampling_params": sampling, "return_logprob": True, "logprob_start_len": 0}
    return {**body, **fields}


@PLACES
async def test_sglangs_entries_begin_with_a_placeholder_where_they_are_told_to(
    opened: Any, place: str
) -> None:
    async with opened(place) as client:
        truth = await native(client, LONG)
        for start in (0, 3, len(LONG) - 1, -1):
            body = sglang(input_ids=LONG, logprob_start_len=start)
            answer = await post(client, "/generate", body)
            first = len(LONG) - 1 if start == -1 else start
            meta = answer["meta_info"]
            entries = meta["input_token_logprobs"]
            assert [entry[1] for entry in entries] == LONG[first:]
            assert entries[0] == [None, LONG[first], None]
            values = [entry[0] for entry in entries[1:]]
            np.testing.assert_allclose(values, truth.log_probs[first:], **EXACT)
            assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(LONG), 0)
            assert "input_top_logprobs" not in meta
            # Where nothing is computed, no weights answer.
            assert meta["weight_version"] == ("4" if values else None)


@PLACES
async def test_sglang_takes_a_batch_with_one_start_and_other_tokens(
    opened: Any, place: str
) -> None:
    body = sglang(
        input_ids=[LONG, SHORT],
        logprob_start_len=1,
        top_logprobs_num=K,
        token_ids_logprob=[7, 300],
    )
    async with opened(place) as client:
        answers = await post(client, "/generate", body)
        truths = [await native(client, ids) for ids in (LONG, SHORT)]
    for answer, truth in zip(answers, truths, strict=True):
        meta = answer["meta_info"]
        assert [entry[1] for entry in meta["input_token_logprobs"]] == truth.ids[1:]
        for name, values, ids in (
            ("input_top_logprobs", truth.top[1:], truth.top_ids[1:]),
            ("input_token_ids_logprobs", truth.candidates[1:], [[7, 300]] * len(truth.ids)),
        ):
            assert meta[name][0] is None
            for entries, row, tokens in zip(meta[name][1:], values, ids, strict=False):
                assert [entry[1] for entry in entries] == tokens
                np.testing.assert_allclose([entry[0] for entry in entries], row, **EXACT)
            assert len(meta[name]) == len(truth.ids) - 1


@PLACES
async def test_sglang_scales_by_the_temperature_of_the_rollout(opened: Any, place: str) -> None:
    sampling = {"temperature": 0.6, "max_new_tokens": 0}
    async with opened(place) as client:
        answer = await post(client, "/generate", sglang(input_ids=LONG, sampling_params=sampling))
        truth = await native(client, LONG, temperature=0.6)
        text = await post(client, "/generate", sglang(text="It is 4."))
    values = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(values, truth.log_probs, **EXACT)
    assert text["meta_info"]["input_token_logprobs"][0][0] is None


MESSAGES = [{"role": "user", "content": "2+2?"}]


@PLACES
@pytest.mark.parametrize(
    "content", [[40, 41, 1], {"token_ids": [40, 41, 1], "loss_scale": [1] * 3}]
)
async def test_swift_gets_the_whole_conversation_with_the_ids_at_its_end(
    opened: Any, place: str, content: Any
) -> None:
    request = {"messages": [*MESSAGES, {"role": "assistant", "content": content}], "uuid": "x"}
    config = {"prompt_logprobs": 0, "max_tokens": 1, "temperature": 0.0, "top_k": None, "n": 1}
    body = {"infer_requests": [request], "request_config": config, "metrics": None}
    async with opened(place) as client:
        (answer,) = await post(client, "/infer/", {**body, "use_tqdm": False})
        assert await post(client, "/infer/", {**body, "infer_requests": []}) == []
        prompt = tiny.tokenizer().apply_chat_template(MESSAGES, add_generation_prompt=True)
        ids = [*prompt["input_ids"], 40, 41, 1]
        truth = await native(client, ids)
    assert_vllm(answer["prompt_logprobs"], truth, 0)
    assert answer["prompt_token_ids"] == ids
    known = {"model", "choices", "usage", "id", "object", "created", "prompt_token_ids"}
    assert set(answer) == known | {"prompt_logprobs"}  # its dataclass takes no other


@PLACES
async def test_swift_reads_a_text_with_or_without_its_end_of_turn(opened: Any, place: str) -> None:
    async with opened(place) as client:
        ends = []
        for add_eos in (None, False, True, "auto"):
            messages = [*MESSAGES, {"role": "assistant", "content": "It is 4."}]
            request = {"messages": messages, "add_eos": add_eos}
            config = {"prompt_logprobs": 2, "max_tokens": 1, "temperature": 0.0}
            body = {"infer_requests": [request], "request_config": config}
            (answer,) = await post(client, "/infer/", body)
            ends.append(answer["prompt_token_ids"][-1] == tiny.END_ID)
            truth = await native(client, answer["prompt_token_ids"])
            assert_vllm(answer["prompt_logprobs"], truth, 2)
    assert ends == [False, False, True, True]


def arrays(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    shape = answer["shape"]
    dtypes = {"logprobs": "<f4", "token_ids": "<i4"}
    found = {}
    for prefix, last in (("", shape[2]), ("actual_", 1)):
        for name, dtype in dtypes.items():
            flat = np.frombuffer(base64.b64decode(answer[f"{prefix}{name}_b64"]), dtype)
            found[prefix + name] = flat.reshape(shape[0], shape[1], last)
    return found


@PLACES
async def test_trls_old_route_gives_completions_as_arrays_and_as_lists(
    opened: Any, place: str
) -> None:
    body = {"sequences": [LONG, SHORT, SHORT], "prompt_lengths": [3, 0, 2], "top_logprobs": K}
    async with opened(place) as client:
        binary = await post(
            client, "/get_sequence_logprobs/", {**body, "response_format": "binary"}
        )
        lists = await post(client, "/get_sequence_logprobs/", body)
        truths = [await native(client, ids) for ids in (LONG, SHORT)]
    assert binary["shape"] == [3, 4, K]
    assert binary["completion_lengths"] == [4, 2, 0]
    found = arrays(binary)
    long, short = truths
    np.testing.assert_allclose(found["actual_logprobs"][0, :, 0], long.log_probs[2:], **EXACT)
    assert found["actual_token_ids"][0, :, 0].tolist() == LONG[3:]
    np.testing.assert_allclose(found["logprobs"][0], long.top[2:], **EXACT)
    assert found["token_ids"][0].tolist() == long.top_ids[2:]
    # Of a completion that is the whole sequence, the first token has no number.
    assert np.isneginf(found["logprobs"][1, 0]).all()
    np.testing.assert_allclose(found["actual_logprobs"][1, 1], short.log_probs, **EXACT)
    assert np.isneginf(found["logprobs"][1, 2:]).all()
    assert np.isneginf(found["actual_logprobs"][2]).all()
    assert [len(rows) for rows in lists["logprobs"]] == [4, 2, 0]
    assert lists["logprobs"][1][0] == lists["logprob_token_ids"][1][0] == []
    for place_of_token, row in enumerate(lists["logprob_token_ids"][0]):
        own = LONG[3 + place_of_token]
        top = long.top_ids[2 + place_of_token]
        assert row == top + [own] * (own not in top)


COMPLETION = {"prompt": [LONG], "max_tokens": 1, "prompt_logprobs": 1}
SAMPLING = {"max_tokens": 1, "prompt_logprobs": 1}
CHAT = {"messages": [*MESSAGES, {"role": "assistant", "content": [40]}]}
INFER = {"infer_requests": [CHAT], "request_config": {"prompt_logprobs": 0, "max_tokens": 1}}
OLD = {"sequences": [LONG], "prompt_lengths": [3], "top_logprobs": 1}


@PLACES
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 16}, "prompt_logprobs"),
        ("/v1/completions", {**COMPLETION, "max_tokens": 16}, "max_tokens"),
        ("/v1/completions", {**COMPLETION, "stream": True}, "stream"),
        ("/v1/completions", {**COMPLETION, "n": 2}, "n"),
        ("/v1/completions", {**COMPLETION, "prompt": []}, "prompt"),
        ("/v1/completions", {**COMPLETION, "prompt": [LONG, []]}, "prompt[1]"),
        ("/v1/completions", {**COMPLETION, "prompt": [LONG, [5, 10_000]]}, "prompt[1]"),
        ("/v1/completions", {**COMPLETION, "prompt_logprobs": 129}, "prompt_logprobs"),
        ("/v1/completions", {**COMPLETION, "prompt_logprobs": -1}, "prompt_logprobs"),
        ("/v1/completions", {**COMPLETION, "temperature": -1.0}, "temperature"),
        (
            "/inference/v1/generate",
            {"token_ids": LONG, "sampling_params": {"max_tokens": 9, "prompt_logprobs": 1}},
            "sampling_params",
        ),
        ("/v1/completions", {**COMPLETION, "prompt": [LONG, [5, "a"]]}, "prompt[1][1]"),
        ("/v1/completions", {**COMPLETION, "prompt": 5}, "prompt"),
        (
            "/v1/completions",
            {**COMPLETION, "truncate_prompt_tokens": 2},
            "truncate_prompt_tokens",
        ),
        (
            "/v1/completions",
            {**COMPLETION, "prompt": ["Hi there"], "add_special_tokens": False},
            "add_special_tokens",
        ),
        ("/v1/completions", {**COMPLETION, "prompt_embeds": "AAAA"}, "prompt_embeds"),
        (
            "/inference/v1/generate",
            {"token_ids": LONG, "sampling_params": {**SAMPLING, "truncate_prompt_tokens": 2}},
            "sampling_params.truncate_prompt_tokens",
        ),
        ("/inference/v1/generate", {"token_ids": [], "sampling_params": SAMPLING}, "token_ids[0]"),
        (
            "/inference/v1/generate",
            {"token_ids": LONG, "sampling_params": {**SAMPLING, "temperature": -1.0}},
            "sampling_params.temperature",
        ),
        ("/generate", sglang(input_ids=LONG, return_logprob=False), "return_logprob"),
        (
            "/generate",
            sglang(input_ids=LONG, sampling_params={"max_new_tokens": 5}),
            "sampling_params.max_new_tokens",
        ),
        ("/generate", {"text": "Hi"}, "return_logprob"),
        ("/generate", sglang(input_ids=LONG, logprob_start_len=7), "logprob_start_len"),
        ("/generate", sglang(input_ids=[LONG, [5, 10_000]]), "input_ids[1]"),
        ("/generate", sglang(text=["Hi there", ""]), "text[1]"),
        ("/generate", sglang(input_ids=LONG, top_logprobs_num=-1), "top_logprobs_num"),
        (
            "/generate",
            sglang(input_ids=LONG, sampling_params={"temperature": "hot"}),
            "sampling_params.temperature",
        ),
        ("/generate", sglang(input_ids=LONG, lora_path="a"), "lora_path"),
        ("/generate", sglang(input_ids=LONG, top_logprobs_num=129), "top_logprobs_num"),
        ("/generate", sglang(input_ids=LONG, token_ids_logprob=[7] * 1025), "token_ids_logprob"),
        (
            "/infer/",
            {**INFER, "request_config": {"max_tokens": 5}},
            "request_config.prompt_logprobs",
        ),
        (
            "/infer/",
            {**INFER, "infer_requests": [{"messages": MESSAGES * 2}]},
            "infer_requests[0].messages[1]",
        ),
        (
            "/infer/",
            {**INFER, "request_config": {**INFER["request_config"], "temperature": -1.0}},
            "request_config.temperature",
        ),
        ("/tokenize", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            "/tokenize",
            {"messages": MESSAGES, "add_generation_prompt": False, "continue_final_message": True},
            "continue_final_message",
        ),
        ("/get_sequence_logprobs/", {**OLD, "prompt_lengths": [8]}, "prompt_lengths[0]"),
        ("/get_sequence_logprobs/", {**OLD, "prompt_lengths": []}, "prompt_lengths"),
        ("/get_sequence_logprobs/", {**OLD, "temperature": 0.0}, "temperature"),
    ],
)
async def test_requests_that_cannot_be_answered_are_refused_in_a_sentence_at_their_place(
    opened: Any, place: str, path: str, body: Any, param: str
) -> None:
    async with opened(place) as client:
        answer = await post(client, path, body, 422)
    (detail,) = answer.values()
    assert detail["param"] == param
    assert len(detail["message"]) > 10


async def test_a_scorer_of_own_tokens_alone_gives_these_and_says_so_if_more_is_wanted(
    opened: Any,
) -> None:
    async with opened("replica") as client:
        truth = await native(client, LONG)
    async with opened("bare") as client:
        answer = await post(client, "/generate", sglang(input_ids=LONG))
        infer = await post(client, "/v1/completions", {**COMPLETION, "prompt_logprobs": 0})
        refused = await post(client, "/v1/completions", COMPLETION, 422)
    values = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(values, truth.log_probs, **EXACT)
    assert infer["choices"][0]["prompt_logprobs"][1][str(LONG[1])]["rank"] is None
    assert "`logprob`" in refused["error"]["message"]


async def test_a_service_without_a_language_model_has_no_log_probs(
    serve: Any, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path, task="reward_model")
    settings = {"name": "rm", "task": "reward_model", "scorers": [{"type": "reward_model"}]}
    with serve((settings, folder)) as replicas:
        async with httpx.AsyncClient(base_url=replicas["url"] + "/d/rm") as client:
            answer = await post(client, "/v1/completions", COMPLETION, 404)
    assert answer["error"]["type"] == "unknown_scorer"
