"""Functions that ask the service through the trainers that PyPI has not: slime's clients of a
reward model and of a teacher, prime-rl's client of a teacher, and rllm's steps with our adapter.

A trainer takes part if a variable names its checkout (`fakes.published`). The tests know the right
answers.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from fakes import published
from tokenreward_client import AsyncClient
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers.rllm import set_advantages

TRAINERS = ("slime", "prime-rl", "rllm")
MISSING = ("PIL", "jiter", "latex2sympy2", "pylatexenc", "sglang", "sglang_router", "vllm", "wandb")
PROMPT, RESPONSE = [{"role": "user", "content": "2+2?"}], "It is 4."
IDS = [5, 6, 7, 8, 9]

Ask = Callable[[], list[float]]


class GenerateResponse:
    """vLLM's reply, read as JSON: the class of it that prime-rl imports wants vLLM."""

    @staticmethod
    def model_validate_json(content: bytes) -> Any:
        body = json.loads(content)
        assert body["choices"][0].keys() >= {"index", "token_ids"}
        return SimpleNamespace(prompt_logprobs=body["prompt_logprobs"])


def folders() -> list[Path]:
    """What has to be importable, beside the libraries of `MISSING`."""
    named = published.named_checkouts(TRAINERS)
    return [folder / "src" if name == "prime-rl" else folder for name, folder in named.items()]


def clients(url: str) -> Iterator[tuple[str, Ask]]:
    """Each client's name, and a function that asks through it for one sample."""
    named = published.named_checkouts(TRAINERS)
    if "slime" in named:
        yield from _slime(url)
    if "prime-rl" in named:
        yield "prime-rl", _prime_rl(url, named["prime-rl"])
    if "rllm" in named:
        yield "rllm", _rllm(url)


def _slime(url: str) -> Iterator[tuple[str, Ask]]:
    hub = importlib.import_module("slime.rollout.rm_hub")
    opd = importlib.import_module("slime.rollout.on_policy_distillation")
    kind = importlib.import_module("slime.utils.types").Sample

    async def remote_rm() -> list[float]:
        sample = kind(prompt=PROMPT, response=RESPONSE)
        try:
            return [await hub.remote_rm(SimpleNamespace(rm_url=f"{url}/remote_rm"), sample)]
        finally:
            await hub._get_shared_session().close()

    async def teacher() -> list[float]:
        sample = kind(tokens=IDS, response_length=len(IDS) - 1)
        args = SimpleNamespace(
            rm_url=f"{url}/generate", rollout_temperature=1.0, reward_key=None, eval_reward_key=None
        )
        sample.reward = await opd.reward_func(args, sample)
        opd.post_process_rewards(args, [sample])
        return list(sample.teacher_log_probs.tolist())

    yield "slime", lambda: asyncio.run(remote_rm())
    yield "slime OPD", lambda: asyncio.run(teacher())


def _prime_rl(url: str, folder: Path) -> Ask:
    openai = importlib.import_module("openai")
    name = "vllm.entrypoints.scale_out.token_in_token_out.protocol"
    importlib.import_module(name).GenerateResponse = GenerateResponse  # type: ignore[attr-defined]
    file = folder / "src/prime_rl/utils/client.py"
    prefill = published.definition(file, "prefill_logprobs", httpx=httpx)

    async def ask() -> list[float]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="EMPTY") as sdk:
            first, *others = await prefill(sdk, "any name", IDS)
        assert first == 0.0  # nothing predicts the first token
        return others

    return lambda: asyncio.run(ask())


def _rllm(url: str) -> Ask:
    types = importlib.import_module("rllm.types")

    async def ask() -> list[float]:
        step = types.Step(prompt_ids=IDS[:1], response_ids=IDS[1:])
        episode = types.Episode(trajectories=[types.Trajectory(name="solver", steps=[step])])
        async with AsyncClient(url) as client:
            await set_advantages(TokenReward(client, "attention_dense"), episode)
        return list(step.advantage)

    return lambda: asyncio.run(ask())
