"""TRL's GRPOTrainer and RLOOTrainer, as they are published, train on rewards over HTTP."""

# ruff: noqa: E402 - without the trainers' packages nothing heavy is imported
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fakes import published

published.site()

import torch
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

from tokenreward.demo import scoring
from tokenreward_client import AsyncClient, BadArgument, Client
from tokenreward_client.trainers.trl import reward_func
from trainers.trl import runs

MEAN = {"options": {"aggregation": "mean"}}


def test_the_scalar_is_the_models_own_mean_log_prob_for_20_steps(
    make_policy: Any, url: str, tmp_path: Path
) -> None:
    policy, (frozen, tokenizer) = make_policy(), make_policy()
    reward = runs.Recording(reward_func(AsyncClient(url), "logprob", **MEAN))
    trainer = runs.train(GRPOTrainer, policy, tmp_path, reward_funcs=[reward])
    assert len(reward.calls) == trainer.state.global_step == runs.NUM_STEPS
    for turns, completions, rewards in reward.calls[::5]:
        for turn, completion, number in zip(turns, completions, rewards, strict=True):
            text = completion[0]["content"]
            prompt_ids, ids, _ = scoring.encode(tokenizer, turn, text)
            logits = scoring.response_logits(frozen, prompt_ids, ids)
            truth = scoring.logprob(logits.double(), ids).mean()
            assert number == pytest.approx(float(truth), abs=1e-4)
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    means = [sum(rewards) / len(rewards) for _, _, rewards in reward.calls]
    assert logged == pytest.approx(means, abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_after_20_dense_steps_the_policy_is_that_of_a_loop_written_by_hand(
    make_policy: Any, url: str, tmp_path: Path, gamma: float
) -> None:
    policy, start = make_policy(), make_policy()[0].state_dict()
    client = Client(url)
    truth = reward_func(client, "logprob", **MEAN)
    trainer = runs.train(
        runs.DenseTrainer,
        policy,
        tmp_path,
        reward_funcs=[truth],
        client=client,
        scorer="logprob",
        dense={"gamma": gamma},
    )
    dense = policy[0].state_dict()
    by_hand = runs.train_by_hand(make_policy(), client, "logprob", gamma).state_dict()
    moved = max(float((dense[name] - start[name]).abs().max()) for name in start)
    apart = max(float((dense[name] - by_hand[name]).abs().max()) for name in start)
    assert moved > 5 * runs.RATE
    assert apart <= 1e-5, f"{apart} apart, {moved} moved"
    rows = [row for row in trainer.state.log_history if "dense/reward" in row]
    assert len(rows) == runs.NUM_STEPS
    assert all(row["dense/missing"] == 0.0 and math.isfinite(row["loss"]) for row in rows)
    assert all(row["dense/token_reward"] < 0.0 < row["dense/reward_std"] for row in rows)


@pytest.mark.parametrize(
    "loss_type", ["grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
)
def test_every_loss_of_trl_takes_an_advantage_per_token(
    policy: Any, url: str, tmp_path: Path, loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runs.SETTINGS, "loss_type", loss_type)
    client = Client(url)
    start = policy[0].lm_head.weight.detach().clone()
    trainer = runs.train(
        runs.DenseTrainer,
        policy,
        tmp_path,
        steps=2,
        reward_funcs=[reward_func(client, "logprob", **MEAN)],
        client=client,
    )
    losses = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in losses)
    assert not torch.equal(policy[0].lm_head.weight, start)


def test_steps_that_share_a_generation_and_accumulate_gradients_keep_each_rows_advantages(
    policy: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runs.SETTINGS, "per_device_train_batch_size", runs.SIZE)
    monkeypatch.setitem(runs.SETTINGS, "gradient_accumulation_steps", 2)
    monkeypatch.setitem(runs.SETTINGS, "steps_per_generation", 4)
    monkeypatch.setitem(runs.SETTINGS, "num_iterations", 2)
    client, shapes = Client(url), []

    class Watching(runs.DenseTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            shapes.append(tuple(inputs["advantages"].shape))
            assert ((inputs["advantages"] == 0) | (inputs["completion_mask"] != 0)).all()
            return super()._compute_loss(model, inputs)

    runs.train(
        Watching,
        policy,
        tmp_path,
        steps=4,
        reward_funcs=[reward_func(client, "logprob", **MEAN)],
        client=client,
    )
    assert len(shapes) == 8
    assert all(rows == runs.SIZE and length > 1 for rows, length in shapes)


def test_rloo_takes_the_scalar(policy: Any, url: str, tmp_path: Path) -> None:
    reward = reward_func(AsyncClient(url), "reward_model")
    trainer = runs.train(
        RLOOTrainer, policy, tmp_path, config=RLOOConfig, steps=2, reward_funcs=[reward]
    )
    rows = [row for row in trainer.state.log_history if "rewards/reward_model/mean" in row]
    assert len(rows) == 2
    assert all(math.isfinite(row["rewards/reward_model/mean"]) for row in rows)


def test_levels_are_refused_before_a_step(policy: Any, url: str, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=r"`values` gives levels.*`red`"):
        runs.train(
            runs.DenseTrainer,
            policy,
            tmp_path,
            reward_funcs=[reward_func(Client(url), "reward_model")],
            client=Client(url),
            scorer="reward_model",
            score={"credit": {"name": "values"}},
        )
