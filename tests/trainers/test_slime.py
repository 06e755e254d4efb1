"""slime's own functions with our three hooks, and its own clients of a reward model and a teacher.

It runs from the checkout that `SLIME_CHECKOUT` names.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fakes import published
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers import TokenReward
from tokenreward_client.trainers._advantages import dense_advantages
from tokenreward_client.trainers.slime import DenseHooks

CHECKOUT = published.checkout("slime")
MISSING = ("PIL", "pylatexenc", "megatron", "wandb", "sglang", "sglang_router", "latex2sympy2")
PROMPT, RESPONSES = [5, 6, 7, 8], [[9, 10, 11, 12, 13], [14, 15, 16]]
DENSE = {"gamma": 1.0, "baseline": "sequence", "scale": "none"}


@pytest.fixture(scope="module")
def slime() -> Iterator[Any]:
    """Gives a module of slime by its name."""
    with published.importable(CHECKOUT, missing=MISSING):
        yield lambda name: importlib.import_module(f"slime.{name}")


@pytest.fixture
async def asking(url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url) as client:
        yield client


def samples_of(slime: Any) -> list[Any]:
    kind = slime("utils.types").Sample
    return [
        kind(
            group_index=0,
            index=index,
            prompt="When?",
            tokens=[*PROMPT, *response],
            response="a text",
            response_length=len(response),
        )
        for index, response in enumerate(RESPONSES)
    ]


def arguments(**more: Any) -> Any:
    flags = {"n_samples_per_prompt": 2, "reward_key": "score", "eval_reward_key": None}
    return SimpleNamespace(**{**flags, **more})


def train_arguments(**more: Any) -> Any:
    flags = {
        "use_rollout_logprobs": False,
        "kl_coef": 0.0,
        "custom_advantage_function_path": "hooks_of_a_user.advantage",
        "use_opd": False,
        "normalize_advantages": False,
        "advantage_estimator": "grpo",
    }
    return arguments(**{**flags, **more})


async def rewarded(hooks: DenseHooks, samples: list[Any]) -> None:
    for sample in samples:
        sample.reward = await hooks.rm(arguments(), sample)


async def test_the_three_hooks_bring_the_vector_to_the_loss(
    slime: Any, asking: AsyncClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = DenseHooks(TokenReward(asking, "attention_dense"), DENSE)
    samples = samples_of(slime)
    await rewarded(hooks, samples)
    native = client.score([(PROMPT, response) for response in RESPONSES], "attention_dense")
    for sample, answer in zip(samples, native, strict=True):
        np.testing.assert_allclose(sample.reward["token_rewards"], answer.rewards, atol=1e-5)
        assert sample.get_reward_value(arguments()) == pytest.approx(answer.score, abs=1e-6)

    raw, rewards = hooks.post_process(arguments(), samples)
    assert raw == pytest.approx([answer.score for answer in native], abs=1e-6)
    assert [tensor.shape for tensor in rewards] == [(5,), (3,)]
    assert all(tensor.dtype == torch.float32 for tensor in rewards)
    assert torch.cat(rewards).ndim == 1  # as slime logs them

    data: dict[str, Any] = {
        "rewards": rewards,
        "log_probs": [torch.zeros(len(response)) for response in RESPONSES],
        "response_lengths": [5, 3],
        "total_lengths": [9, 7],
        "loss_masks": [torch.ones(5), torch.ones(3)],
    }
    loss = slime("backends.megatron_utils.loss")
    monkeypatch.setattr(loss.mpu, "get_context_parallel_world_size", lambda: 1, raising=False)
    monkeypatch.setattr(loss, "load_function", lambda path: hooks.advantage)
    loss.compute_advantages_and_returns(train_arguments(), data)
    matrix, mask = np.zeros((2, 5)), np.zeros((2, 5))
    for row, answer in enumerate(native):
        matrix[row, : len(answer.rewards)] = answer.rewards
        mask[row, : len(answer.rewards)] = 1
    expected = dense_advantages(matrix, mask, num_generations=2, **DENSE)
    for row, advantages in enumerate(data["advantages"]):
        own = expected[row, : len(advantages)]
        np.testing.assert_allclose(advantages.numpy(), own, atol=1e-5)
        np.testing.assert_allclose(data["returns"][row].numpy(), own, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
async def test_with_context_parallelism_a_rank_keeps_its_own_tokens(
    slime: Any, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    parts = slime("backends.megatron_utils.cp_utils")
    monkeypatch.setattr(parts.mpu, "get_context_parallel_world_size", lambda: 2, raising=False)
    monkeypatch.setattr(parts.mpu, "get_context_parallel_rank", lambda: rank, raising=False)
    row = torch.arange(8.0)
    own = parts.slice_log_prob_with_cp(row, 12, 8)
    data = {"rewards": [row], "kl": [own * 0], "total_lengths": [12], "response_lengths": [8]}
    DenseHooks(TokenReward(AsyncClient("http://x"))).advantage(arguments(), data)
    assert data["advantages"][0].tolist() == own.tolist()
    assert 0 < len(own) < 8
    data["kl"] = [row * 0]
    with pytest.raises(BadArgument, match="tokens of this rank"):
        DenseHooks(TokenReward(AsyncClient("http://x"))).advantage(arguments(), data)


async def test_masked_tokens_and_removed_samples_have_no_advantage(
    slime: Any, asking: AsyncClient
) -> None:
    hooks = DenseHooks(TokenReward(asking, "logprob"), {"baseline": "none", "scale": "none"})
    first, second = samples_of(slime)
    first.loss_mask, second.remove_sample = [1, 0, 0, 1, 1], True
    await rewarded(hooks, [first, second])
    _, (one, two) = hooks.post_process(arguments(), [first, second])
    assert one[1:3].tolist() == [0.0, 0.0]
    assert one[0] != 0
    assert two.tolist() == [0.0, 0.0, 0.0]


async def test_a_list_of_samples_is_answered_in_its_order(slime: Any, asking: AsyncClient) -> None:
    hooks = DenseHooks(TokenReward(asking, "attention_dense"))
    samples = samples_of(slime)
    together = await slime("rollout.rm_hub").batched_async_rm(arguments(custom_rm_path=None), [])
    assert together == []
    replies = await hooks.rm(arguments(), samples)
    await rewarded(hooks, samples)
    for reply, sample in zip(replies, samples, strict=True):
        np.testing.assert_allclose(
            reply["token_rewards"], sample.reward["token_rewards"], atol=1e-5
        )


def test_groups_that_are_not_whole_are_refused(slime: Any) -> None:
    hooks = DenseHooks(TokenReward(AsyncClient("http://x")))
    with pytest.raises(BadArgument, match="whole groups of 3"):
        hooks.post_process(arguments(n_samples_per_prompt=3), samples_of(slime))


async def test_remote_rm_gets_the_native_score_and_its_tokens(
    slime: Any, url: str, client: Client
) -> None:
    hub = slime("rollout.rm_hub")
    sample = samples_of(slime)[0]
    sample.prompt, sample.response = [{"role": "user", "content": "2+2?"}], "It is 4."
    [answer] = client.score([(sample.prompt, sample.response)], "reward_model")
    number = await hub.remote_rm(SimpleNamespace(rm_url=f"{url}/remote_rm"), sample)
    assert number == pytest.approx(answer.score, abs=1e-6)
    args = arguments(rm_url=f"{url}/remote_rm/score", custom_rm_path=None, rm_type="remote_rm")
    sample.reward = await hub.async_rm(args, sample)
    assert sample.get_reward_value(args) == pytest.approx(answer.score, abs=1e-6)
    np.testing.assert_allclose(sample.reward["token_rewards"], answer.rewards, atol=1e-5)
    await hub._get_shared_session().close()


async def test_distillation_by_url_gets_log_pi_of_the_very_ids(
    slime: Any, url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    opd = slime("rollout.on_policy_distillation")
    args = train_arguments(
        rm_url=f"{url}/generate",
        rollout_temperature=1.0,
        reward_key=None,
        use_opd=True,
        opd_type="sglang",
        opd_kl_coef=0.5,
        custom_advantage_function_path=None,
    )
    samples = samples_of(slime)
    for sample in samples:
        sample.reward = await opd.reward_func(args, sample)
    opd.post_process_rewards(args, samples)
    native = client.score([(PROMPT, response) for response in RESPONSES], "logprob")
    for sample, answer in zip(samples, native, strict=True):
        np.testing.assert_allclose(sample.teacher_log_probs.numpy(), answer.rewards, atol=1e-5)
    student = [torch.full((5,), -2.0), torch.full((3,), -1.0)]
    data: dict[str, Any] = {
        "rewards": [0.0, 0.0],
        "log_probs": student,
        "teacher_log_probs": [sample.teacher_log_probs for sample in samples],
        "response_lengths": [5, 3],
        "total_lengths": [9, 7],
        "loss_masks": [torch.ones(5), torch.ones(3)],
    }
    loss = slime("backends.megatron_utils.loss")
    monkeypatch.setattr(loss.mpu, "get_context_parallel_world_size", lambda: 1, raising=False)
    loss.compute_advantages_and_returns(args, data)
    for row, answer in enumerate(native):
        expected = 0.5 * (answer.rewards - student[row].numpy())
        np.testing.assert_allclose(data["advantages"][row].numpy(), expected, atol=1e-5)
