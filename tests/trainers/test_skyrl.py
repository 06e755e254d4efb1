"""SkyRL's own types and packing, with our generator."""

from __future__ import annotations

import importlib
import typing
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import typing_extensions

from fakes import published
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers.skyrl import DenseGenerator

SITE = published.site()
MISSING = (
    "PIL", "cloudpathlib", "hydra", "loguru", "omegaconf", "pybase64", "skyrl_gym", "tensordict",
    "torchdata",
)  # fmt: skip
PROMPTS, RESPONSES = [[5, 6, 7, 8], [5, 6]], [[9, 10, 11, 12, 13], [14, 15, 16]]
MASKS = [[1, 1, 0, 1, 1], [1, 1, 1]]


@pytest.fixture(scope="module")
def skyrl() -> Iterator[Any]:
    """Gives a module of SkyRL by its name. Pydantic wants the typed dicts of Python 3.12."""
    before = typing.TypedDict
    typing.TypedDict = typing_extensions.TypedDict  # type: ignore[assignment,misc]
    try:
        with published.importable(SITE, missing=MISSING):
            yield lambda name: importlib.import_module(f"skyrl.{name}")
    finally:
        typing.TypedDict = before  # type: ignore[assignment,misc]


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def generator(skyrl: Any, reward: TokenReward, **more: Any) -> Any:
    base = skyrl("train.generators.base")

    class Generated(base.GeneratorInterface):
        tokenizer = None

        async def generate(self, input_batch: Any, disable_tqdm: bool = False) -> Any:
            return {
                "prompt_token_ids": PROMPTS,
                "response_ids": RESPONSES,
                "rewards": [1.0, 0.0],
                "loss_masks": MASKS,
                "stop_reasons": ["stop", "stop"],
                "rollout_metrics": {},
                "rollout_logprobs": None,
                **more,
            }

    class Dense(DenseGenerator, Generated):
        pass

    Dense.reward = reward
    return Dense()


def batch(skyrl: Any, phase: str = "train") -> dict[str, Any]:
    metadata = skyrl("train.generators.base").BatchMetadata(global_step=1, training_phase=phase)
    return {"prompts": [], "batch_metadata": metadata}


async def test_the_vector_is_packed_as_skyrl_packs_its_own(
    skyrl: Any, asking: AsyncClient, client: Client
) -> None:
    made = generator(skyrl, TokenReward(asking, "attention_dense"))
    output = await made.generate(batch(skyrl), disable_tqdm=True)
    items = [
        {"prompt": prompt, "response": response, "mask": mask}
        for prompt, response, mask in zip(PROMPTS, RESPONSES, MASKS, strict=True)
    ]
    native = client.score(items, "attention_dense")
    assert isinstance(output["rewards"][0], list)  # how SkyRL tells a vector from a number
    for row, answer in zip(output["rewards"], native, strict=True):
        np.testing.assert_allclose(row, answer.rewards, atol=1e-5)
    convert = skyrl("train.dataset.preprocess").convert_prompts_responses_to_batch_tensors
    rewards = convert(0, PROMPTS, RESPONSES, output["rewards"], output["loss_masks"])[3]
    np.testing.assert_allclose(rewards[0].numpy(), native[0].rewards, atol=1e-5)
    np.testing.assert_allclose(rewards[1].numpy(), [0, 0, *native[1].rewards], atol=1e-5)


async def test_the_environments_number_is_added_on_the_last_token(
    skyrl: Any, asking: AsyncClient
) -> None:
    made = generator(skyrl, TokenReward(asking, "attention_dense"))
    plain = await made.generate(batch(skyrl))
    made.outcome_weight = 2.0
    both = await made.generate(batch(skyrl))
    np.testing.assert_allclose(
        np.subtract(both["rewards"][0], plain["rewards"][0]), [0, 0, 0, 0, 2.0], atol=1e-5
    )


async def test_responses_that_the_overlong_filter_left_out_have_rewards_of_0(
    skyrl: Any, asking: AsyncClient, client: Client
) -> None:
    filtered = skyrl("train.generators.utils").apply_overlong_filtering(MASKS, ["stop", "length"])
    made = generator(skyrl, TokenReward(asking, "attention_dense"), loss_masks=filtered)
    output = await made.generate(batch(skyrl))
    item = {"prompt": PROMPTS[0], "response": RESPONSES[0], "mask": MASKS[0]}
    [native] = client.score([item], "attention_dense")
    np.testing.assert_allclose(output["rewards"][0], native.rewards, atol=1e-5)
    assert output["rewards"][1] == [0.0, 0.0, 0.0]


async def test_an_evaluation_keeps_the_environments_rewards(
    skyrl: Any, asking: AsyncClient
) -> None:
    made = generator(skyrl, TokenReward(asking, "attention_dense"))
    assert (await made.generate(batch(skyrl, "eval")))["rewards"] == [1.0, 0.0]


async def test_trajectories_in_steps_are_refused(skyrl: Any, asking: AsyncClient) -> None:
    reward = TokenReward(asking, "attention_dense")
    made = generator(skyrl, reward, is_last_step=[True, True])
    with pytest.raises(BadArgument, match="step_wise"):
        await made.generate(batch(skyrl))
