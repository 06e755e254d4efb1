"""What is asked of each server and read out of its reply are the same numbers: those of the engine
by itself."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import orjson
import pytest
import torch

from bench import driver, sides, workload
from bench.cores import Cores
from bench.offline import Offline
from bench.rivals.huggingface import Scoring
from bench.rivals.serve_rm import build_app
from bench.sides import DEPLOYMENT, TASK, Numbers, Side
from fakes import web
from tokenreward.engine import Engine
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import RewardsRequest, parse_json, write_reply

VOCAB_SIZE = 400
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
ITEMS = workload.mix(1, group=4, vocab_size=VOCAB_SIZE)
NOBODY: Any = None  # these sides are asked without a process
SCORERS = {
    "lm": [
        {"type": "endogenous"},
        {"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}},
    ],
    "rm": [{"type": "reward_model"}],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bench")
    return {
        "lm": workload.save(workload.language_model(VOCAB_SIZE, **SHAPE), folder / "lm"),
        "rm": workload.save(workload.reward_model(VOCAB_SIZE, **SHAPE), folder / "rm"),
    }


def truth(folders: dict[str, Path], numbers: Numbers) -> list[np.ndarray]:
    deployment = DEPLOYMENT[numbers]
    return Offline(folders[deployment], deployment, Cores.here()).numbers(ITEMS, numbers)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 1e-4
    assert np.abs(expected[0]).max() > 1e-2


@pytest.mark.parametrize("numbers", get_args(Numbers))
async def test_our_own_reply_holds_the_engines_numbers(
    folders: dict[str, Path], numbers: Numbers
) -> None:
    deployment = DEPLOYMENT[numbers]
    given = {"name": deployment, "checkpoint": str(folders[deployment]), "task": TASK[deployment]}
    settings = DeploymentSettings.model_validate({**given, "scorers": SCORERS[deployment]})
    engine, side = (
        Engine.load(settings, say=lambda line: None),
        sides.ours(NOBODY, "http://x", numbers),
    )
    replies = []
    for body in side.bodies(ITEMS):
        request = parse_json(RewardsRequest, body.encode())
        content = write_reply(await engine.score(request), encoding=request.encoding_format)
        replies.append(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    await engine.close()
    assert_same(side.numbers(replies, ITEMS), truth(folders, numbers))


@pytest.mark.parametrize("numbers", ["endogenous", "reward_model"])
def test_the_blocking_servers_reply_holds_the_engines_numbers(
    folders: dict[str, Path], numbers: Numbers
) -> None:
    deployment, threads = DEPLOYMENT[numbers], torch.get_num_threads()
    try:
        scoring = Scoring(folders[deployment], TASK[deployment])  # type: ignore[arg-type]
        with web.serving(build_app(scoring)) as url:
            side = sides.serve_rm(NOBODY, url)
            load = asyncio.run(driver.drive(side.url, side.bodies(ITEMS), concurrency=2))
    finally:
        torch.set_num_threads(threads)
    assert_same(side.numbers(load.replies, ITEMS), truth(folders, numbers))


@pytest.mark.parametrize("numbers", ["endogenous", "reward_model"])
def test_a_padded_batch_gives_the_engines_numbers(
    folders: dict[str, Path], numbers: Numbers
) -> None:
    deployment, threads = DEPLOYMENT[numbers], torch.get_num_threads()
    try:
        scoring = Scoring(folders[deployment], TASK[deployment])  # type: ignore[arg-type]
        side = sides.lit_server(NOBODY, "http://x")
        asked = [side.body(item) for item in ITEMS]
        rewards = scoring.rewards(
            [each["query"] for each in asked], [each["start"] for each in asked]
        )
    finally:
        torch.set_num_threads(threads)
    replies = [json.dumps({"rewards": each}) for each in rewards]
    assert_same(side.numbers(replies, ITEMS), truth(folders, numbers))


def test_vllms_replies_are_read_at_the_response(folders: dict[str, Path]) -> None:
    item = ITEMS[0]
    values = np.arange(len(item.ids), dtype="<f4")
    pooled = json.dumps({"data": [{"data": sides._packed(values.view("<i4"))["ids_b64"]}]})
    side: Side = sides.vllm(NOBODY, "http://x", "values")
    assert side.numbers([pooled], [item])[0].tolist() == values[len(item.prompt) :].tolist()
    chosen = [
        None,
        *(
            {str(token): {"logprob": -float(place)}}
            for place, token in enumerate(item.ids[1:], start=1)
        ),
    ]
    side = sides.vllm(NOBODY, "http://x", "logprob")
    found = side.numbers([json.dumps({"choices": [{"prompt_logprobs": chosen}]})], [item])[0]
    assert found.tolist() == [-float(place) for place in range(len(item.prompt), len(item.ids))]


def test_a_reply_without_its_item_is_not_read_as_an_answer() -> None:
    side = sides.ours(NOBODY, "http://x", "endogenous")
    with pytest.raises((TypeError, ValueError)):
        side.numbers([json.dumps({"items": [{"rewards": None, "score": None}]})], ITEMS[:1])
    with pytest.raises(ValueError, match="longer than"):
        side.numbers([], ITEMS[:1])
