"""What trainers' own clients make of a proxy that answers 503 for some seconds: those that wait get
the native number, and the others raise. None makes a number up. Trainers that PyPI has not take
part where checkouts are named."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import numpy as np
import pytest
import requests
import torch

from fakes import published, web
from tokenreward_client import AsyncClient, Client
from tokenreward_client.trainers import TokenReward
from trainers import checkouts

SITE = published.site()
BUSY_S = 4.0
TEXT = "<|bos|><|user|>2+2?<|end|><|assistant|>It is 4.<|end|>"
MISSING = (
    "PIL", "addict", "cachetools", "codetiming", "dacite", "deepspeed", "flash_attn", "hydra",
    "jiter", "json_repair", "modelscope", "omegaconf", "oss2", "pylatexenc", "tensordict",
    "tiktoken", "torchdata", "transfer_queue", "vllm",
)  # fmt: skip


class BusyProxy:
    """An application that answers 503 until a time, and then what the service answers."""

    def __init__(self, url: str, busy_s: float) -> None:
        self._url, self._until = url, time.monotonic() + busy_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, is_all = b"", False
        while not is_all:
            message = await receive()
            body += message.get("body", b"")
            is_all = not message.get("more_body")
        status, content = 503, b"busy"
        if time.monotonic() >= self._until:
            async with httpx.AsyncClient(timeout=60) as client:
                url = self._url + scope["path"]
                headers = {"content-type": "application/json"}
                reply = await client.request(scope["method"], url, content=body, headers=headers)
            status, content = reply.status_code, reply.content
        headers = [(b"content-type", b"application/json")]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": content})


@pytest.fixture
def busy(url: str) -> Iterator[str]:
    with web.serving(BusyProxy(url, BUSY_S)) as address:
        yield address


@pytest.fixture
def always_busy(url: str) -> Iterator[str]:
    """For clients that give up, however slow this machine is."""
    with web.serving(BusyProxy(url, math.inf)) as address:
        yield address


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    missing = tuple({*MISSING, *checkouts.MISSING})
    with published.importable(SITE, *checkouts.folders(), missing=missing):
        yield importlib.import_module


@pytest.fixture
def native(client: Client) -> float:
    [answer] = client.score([([{"role": "user", "content": "2+2?"}], "It is 4.")], "reward_model")
    assert answer.score is not None
    return answer.score


async def test_our_client_waits(busy: str, client: Client) -> None:
    async with AsyncClient(busy) as asking:
        reward = TokenReward(asking, "attention_dense")
        [rewards] = await reward([reward.item([5, 6], [7, 8, 9])])
    [answer] = client.score([([5, 6], [7, 8, 9])], "attention_dense")
    assert rewards.tolist() == pytest.approx(answer.rewards.tolist(), abs=1e-6)


async def test_verl_tries_again(busy: str, module: Any, native: float) -> None:
    kind = module("verl.experimental.reward_loop.reward_loop").RewardLoopWorker
    worker = kind.__new__(kind)
    worker.reward_router_address = busy.removeprefix("http://")
    body = {"model": "m", "input": TEXT, "use_activation": False}
    reply = await worker._post_request(body, "classify")
    assert reply["data"][-1]["probs"][-1] == pytest.approx(native, abs=1e-6)


async def test_openrlhf_gives_up_after_five_tries(
    always_busy: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = module("openrlhf.utils.agent")
    pauses = itertools.count()

    async def no_pause(seconds: float) -> None:
        assert seconds == 1
        next(pauses)

    monkeypatch.setattr(agent.asyncio, "sleep", no_pause)
    executor = agent.SingleTurnAgentExecutor(f"{always_busy}/get_reward")
    with pytest.raises(RuntimeError, match="for 5 times"):
        await executor._fetch_rewards_via_http(["ab"], ["a"], [None])
    assert next(pauses) == 5


def test_llama_factory_raises_at_once(always_busy: str) -> None:
    fetch = published.definition(
        SITE / "llamafactory/train/ppo/ppo_utils.py",
        "get_rewards_from_server",
        requests=requests,
        json=json,
        torch=torch,
    )
    with pytest.raises(ValueError, match="Expecting value"):
        fetch(f"{always_busy}/v1/score/evaluation", [TEXT])


async def test_the_sdk_of_prime_rl_raises_at_last(always_busy: str, module: Any) -> None:
    openai = module("openai")
    async with openai.AsyncOpenAI(base_url=f"{always_busy}/v1", api_key="EMPTY") as sdk:
        assert sdk.max_retries == 2
        with pytest.raises(openai.InternalServerError):
            await sdk.post(f"{always_busy}/inference/v1/generate", cast_to=httpx.Response, body={})


def ask_of_swift(module: Any, teacher: Any) -> list[Any]:
    protocol = module("swift.infer_engine.protocol")
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": [7, 8]}]
    config = protocol.RequestConfig(prompt_logprobs=0, max_tokens=1, temperature=0.0)
    request = protocol.RolloutInferRequest(messages=messages)
    return list(teacher.infer([request], request_config=config, use_tqdm=False))


def test_ms_swift_waits_for_a_teacher_before_the_first_request(
    busy: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = module("swift.rlhf_trainers.vllm_client")
    monkeypatch.setattr(client, "is_vllm_available", lambda: True)
    teacher = client.VLLMInferClient([busy], connection_timeout=60.0)
    [answer] = ask_of_swift(module, teacher)
    assert answer.prompt_token_ids[-2:] == [7, 8]


def test_ms_swift_raises_at_once_afterwards(
    url: str, always_busy: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = module("swift.rlhf_trainers.vllm_client")
    monkeypatch.setattr(client, "is_vllm_available", lambda: True)
    teacher = client.VLLMInferClient([url], connection_timeout=10.0)
    teacher.base_urls = [always_busy]
    with pytest.raises(RuntimeError, match="503"):
        ask_of_swift(module, teacher)


def ask_of_checkout(trainer: str, client: str, url: str) -> list[float]:
    published.checkout(trainer)
    return dict(checkouts.clients(url))[client]()


@pytest.mark.usefixtures("module")
def test_slime_tries_again(busy: str, native: float) -> None:
    assert ask_of_checkout("slime", "slime", busy) == pytest.approx([native], abs=1e-6)


@pytest.mark.usefixtures("module")
def test_slimes_distillation_raises_at_once(always_busy: str) -> None:
    with pytest.raises(aiohttp.ClientResponseError, match="503"):
        ask_of_checkout("slime", "slime OPD", always_busy)


def test_prime_rl_raises_at_last(always_busy: str, module: Any) -> None:
    with pytest.raises(module("openai").InternalServerError):
        ask_of_checkout("prime-rl", "prime-rl", always_busy)


@pytest.mark.usefixtures("module")
def test_rllms_workflow_waits(busy: str, client: Client) -> None:
    advantages = ask_of_checkout("rllm", "rllm", busy)
    ids = checkouts.IDS
    [answer] = client.score([(ids[:1], ids[1:])], "attention_dense")
    returns = np.cumsum(answer.rewards[::-1])[::-1]
    assert advantages == pytest.approx(returns.tolist(), abs=1e-5)
