"""Trainers' own clients while the service loses processes: each gets its native number in the end,
because the service holds its request, or because the client asks again. The kills are those of
docs/trainers.md, and all clients ask at the same time. Those of trainers that PyPI has not take
part where checkouts are named."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import requests
import torch

from fakes import published, serve
from tokenreward_client import AsyncClient, Client
from tokenreward_client.trainers import TokenReward
from trainers import checkouts
from trainers.checkouts import Ask

SITE = published.site()

# Before vLLM is stood in for: TRL compares its version.
from trl.generation import vllm_client as trl_client  # noqa: E402

MISSING = (
    "PIL", "addict", "cachetools", "codetiming", "dacite", "deepspeed", "flash_attn", "hydra",
    "jiter", "json_repair", "modelscope", "omegaconf", "oss2", "pylatexenc", "tensordict",
    "tiktoken", "torchdata", "transfer_queue", "vllm",
)  # fmt: skip
QUESTION, RESPONSE = checkouts.PROMPT, checkouts.RESPONSE
TEXT = "<|bos|><|user|>2+2?<|end|><|assistant|>It is 4.<|end|>"
IDS = checkouts.IDS
PATIENCE_S = 200.0


@pytest.fixture(scope="module")
def clients(url: str) -> Iterator[dict[str, Ask]]:
    """Functions that ask through each client, which is made already: some look first whether the
    service is there. The first four get a score, the next three log-probabilities."""
    missing = tuple({*MISSING, *checkouts.MISSING})
    with (
        published.importable(SITE, *checkouts.folders(), missing=missing),
        pytest.MonkeyPatch.context() as patch,
    ):
        asks = dict(reward_clients(url, importlib.import_module))
        asks |= dict(teacher_clients(url, importlib.import_module, patch))
        yield asks | dict(checkouts.clients(url))


def reward_clients(url: str, module: Any) -> Iterator[tuple[str, Ask]]:
    executor = module("openrlhf.utils.agent").SingleTurnAgentExecutor(f"{url}/get_reward")

    def openrlhf() -> list[float]:
        prompt = TEXT.partition(RESPONSE)[0]
        fetch = executor._fetch_rewards_via_http([prompt + RESPONSE], [prompt], [None])
        (reply,) = asyncio.run(fetch)
        return list(reply["rewards"])

    yield "openrlhf", openrlhf
    kind = module("verl.experimental.reward_loop.reward_loop").RewardLoopWorker
    worker = kind.__new__(kind)
    worker.reward_router_address = url.removeprefix("http://")

    def verl() -> list[float]:
        body = {"model": "m", "input": TEXT, "use_activation": False}
        return list(asyncio.run(worker._post_request(body, "classify"))["data"][-1]["probs"])

    yield "verl", verl
    get_rewards = published.definition(
        SITE / "llamafactory/train/ppo/ppo_utils.py",
        "get_rewards_from_server",
        requests=requests,
        json=json,
        torch=torch,
    )
    yield "llama_factory", lambda: get_rewards(f"{url}/v1/score/evaluation", [TEXT]).tolist()

    async def adapter() -> list[float]:
        async with AsyncClient(url) as client:
            reward = TokenReward(client, "attention_dense")
            item = {"prompt": QUESTION, "response": RESPONSE}
            [rewards] = await reward([item])
            return [float(rewards.sum())]

    yield "our own", lambda: asyncio.run(adapter())


def teacher_clients(url: str, module: Any, patch: pytest.MonkeyPatch) -> Iterator[tuple[str, Ask]]:
    swift, protocol = module("swift.rlhf_trainers"), module("swift.infer_engine.protocol")
    utils, vllm_client = module("swift.rlhf_trainers.utils"), swift.vllm_client
    patch.setattr(vllm_client, "is_vllm_available", lambda: True)
    ms_swift = vllm_client.VLLMInferClient([url], connection_timeout=10.0)

    def of_swift() -> list[float]:
        messages = [*QUESTION, {"role": "assistant", "content": "some text"}]
        messages = utils.replace_assistant_response_with_ids(messages, [IDS], [[1] * len(IDS)])
        config = protocol.RequestConfig(prompt_logprobs=0, max_tokens=1, temperature=0.0)
        request = protocol.RolloutInferRequest(messages=messages)
        (answer,) = ms_swift.infer([request], request_config=config, use_tqdm=False)
        values, _ = utils.parse_prompt_logprobs(answer, topk=0)
        return [value for (value,) in values[-len(IDS) :]]

    yield "ms_swift", of_swift
    patch.setattr(trl_client, "is_vllm_available", lambda *args, **settings: True)
    trl = trl_client.VLLMClient(base_url=url, connection_timeout=10.0)

    def of_trl() -> list[float]:
        answer = trl.get_sequence_logprobs([IDS], [1], top_logprobs=1)
        return [value for (value,) in answer["actual_logprobs"][0]]

    yield "trl", of_trl
    openai = module("openai")

    async def of_sdk() -> list[float]:
        sampling = {"max_tokens": 1, "prompt_logprobs": 1, "temperature": 1.0}
        body = {"model": "any", "token_ids": IDS, "sampling_params": sampling}
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="EMPTY") as sdk:
            path = f"{url}/inference/v1/generate"
            reply = await sdk.post(path, cast_to=httpx.Response, body=body)
        entries = reply.json()["prompt_logprobs"][1:]
        return [next(iter(entry.values()))["logprob"] for entry in entries]

    yield "prime-rl's SDK", lambda: asyncio.run(of_sdk())


def native(client: Client) -> dict[str, list[float]]:
    """What each client is to get."""
    prompt = TEXT.partition(RESPONSE)[0]
    items = [(QUESTION, RESPONSE), (prompt, RESPONSE)]
    scores = [answer.score for answer in client.score(items, "reward_model")]
    answers = client.score([(IDS[:1], IDS[1:]), (QUESTION, IDS)], "logprob")
    alone, behind = (answer.rewards.tolist() for answer in answers)
    [dense] = client.score(items[:1], "attention_dense")
    [of_ids] = client.score([(IDS[:1], IDS[1:])], "attention_dense")
    return {
        "openrlhf": scores[1:],
        "verl": scores[:1],
        "llama_factory": scores[:1],
        "our own": [float(dense.rewards.sum())],
        "ms_swift": behind,
        "trl": alone,
        "prime-rl's SDK": alone,
        "slime": scores[:1],
        "slime OPD": alone,
        "prime-rl": alone,
        "rllm": np.cumsum(of_ids.rewards[::-1])[::-1].tolist(),
    }


@pytest.mark.parametrize(
    "names",
    [["ServeReplica:sft", "ServeReplica:rm"], ["ServeReplica:Gateway"]],
    ids=["replicas", "gateway"],
)
def test_every_client_gets_its_native_numbers_from_a_service_that_lost_processes(
    service: serve.ServedPolicy | None, client: Client, clients: dict[str, Ask], names: list[str]
) -> None:
    if service is None:
        pytest.skip("`TRAINERS_URL` names a service whose processes are not ours to kill")
    expected = native(client)
    assert clients.keys() <= expected.keys()
    for name in names:
        service.kill(name)
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = {name: pool.submit(ask) for name, ask in clients.items()}
        numbers = {name: answer.result(PATIENCE_S) for name, answer in answers.items()}
    for name, values in numbers.items():
        # Other batches than before, which round their sums in another way.
        assert values == pytest.approx(expected[name], abs=1e-5), name
