"""Advantages per token against loops written from the formulas, one number at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tokenreward_client.trainers._advantages import dense_advantages

GROUPS, SIZE, LENGTH = 3, 4, 7


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and masks of completions of different lengths, some with a tool's tokens inside."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(GROUPS * SIZE, LENGTH))
    lengths = rng.integers(1, LENGTH + 1, size=GROUPS * SIZE)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(int)
    mask[1, 0] = 0
    mask[5, 2:4] = 0
    rewards[mask == 0] = np.nan  # which nothing may read
    return rewards, mask


def naive_returns(rewards: Any, mask: Any, gamma: float) -> list[list[float]]:
    returns = []
    for r, m in zip(rewards, mask, strict=True):
        row = []
        for t in range(LENGTH):
            total, weight = 0.0, 1.0
            for u in range(t, LENGTH):
                if m[u]:
                    total += weight * r[u]
                    weight *= gamma
            row.append(total)
        returns.append(row)
    return returns


def naive(rewards: Any, mask: Any, gamma: float, baseline: str) -> np.ndarray:
    """Advantages without scale."""
    rewards = [list(row) for row in rewards]
    if baseline == "token":
        for first in range(0, len(rewards), SIZE):
            means = []
            for i in range(first, first + SIZE):
                mine = [r for r, m in zip(rewards[i], mask[i], strict=True) if m]
                if mine:
                    means.append(sum(mine) / len(mine))
            for i in range(first, first + SIZE):
                rewards[i] = [r - sum(means) / len(means) for r in rewards[i]]
    returns = naive_returns(rewards, mask, gamma)
    advantages = np.zeros(np.shape(mask))
    for i in range(len(rewards)):
        group = range(i - i % SIZE, i - i % SIZE + SIZE)
        for t in range(LENGTH):
            b = 0.0
            if baseline == "position":
                alive = [returns[j][t] for j in group if mask[j][t]]
                b = sum(alive) / len(alive) if alive else 0.0
            if baseline == "sequence":
                whole = [returns[j][0] for j in group if any(mask[j])]
                b = sum(whole) / len(whole)
            advantages[i, t] = mask[i][t] * (returns[i][t] - b)
    return advantages


@pytest.mark.parametrize("baseline", ["position", "sequence", "token", "none"])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_advantages_are_those_of_the_loop(gamma: float, baseline: Any) -> None:
    rewards, mask = batch()
    fast = dense_advantages(
        rewards, mask, num_generations=SIZE, gamma=gamma, baseline=baseline, scale="none"
    )
    np.testing.assert_allclose(fast, naive(rewards, mask, gamma, baseline), rtol=0, atol=1e-12)


def test_the_scale_is_the_root_mean_square_of_the_batch_or_of_the_group() -> None:
    rewards, mask = batch()
    plain = naive(rewards, mask, 1.0, "position")
    by_batch = math.sqrt((plain**2).sum() / mask.sum()) + 1e-4
    fast = dense_advantages(rewards, mask, num_generations=SIZE, scale="batch")
    np.testing.assert_allclose(fast, plain / by_batch, atol=1e-12)
    fast = dense_advantages(rewards, mask, num_generations=SIZE, scale="group")
    for first in range(0, len(mask), SIZE):
        rows = slice(first, first + SIZE)
        by_group = math.sqrt((plain[rows] ** 2).sum() / mask[rows].sum()) + 1e-4
        np.testing.assert_allclose(fast[rows], plain[rows] / by_group, atol=1e-12)


def test_centred_advantages_sum_to_zero_in_each_completion_and_keep_their_differences() -> None:
    rewards, mask = batch()
    settings: Any = {"num_generations": SIZE, "scale": "none", "baseline": "none"}
    plain = dense_advantages(rewards, mask, **settings)
    centred = dense_advantages(rewards, mask, centre=True, **settings)
    np.testing.assert_allclose(centred.sum(axis=1), 0.0, atol=1e-12)
    for row in range(len(mask)):
        own = mask[row] != 0
        np.testing.assert_allclose(np.diff(centred[row][own]), np.diff(plain[row][own]), atol=1e-12)
    assert (centred[mask == 0] == 0).all()


def test_a_score_on_the_last_token_gives_grpos_advantage_at_every_token() -> None:
    scores, lengths = np.array([1.0, 0.0, 0.5, 3.0]), np.array([3, 1, 7, 2])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(int)
    rewards = np.zeros((4, LENGTH))
    rewards[np.arange(4), lengths - 1] = scores
    fast = dense_advantages(rewards, mask, num_generations=4, baseline="sequence", scale="none")
    np.testing.assert_allclose(fast, mask * (scores - scores.mean())[:, None], atol=1e-12)


def test_under_the_token_baseline_a_constant_reward_is_worth_nothing_at_any_length() -> None:
    _, mask = batch()
    rewards = np.full(mask.shape, -0.3)
    fast = dense_advantages(rewards, mask, num_generations=SIZE, baseline="token")
    np.testing.assert_allclose(fast, 0.0, atol=1e-9)


@pytest.mark.parametrize("baseline", ["position", "sequence", "token"])
def test_a_completion_without_rewards_is_as_if_it_were_not_there(baseline: Any) -> None:
    rewards, mask = batch()
    rewards[2] = np.nan
    settings: Any = {"gamma": 0.9, "baseline": baseline, "scale": "none"}
    fast = dense_advantages(rewards, mask, num_generations=SIZE, **settings)
    assert (fast[2] == 0).all()
    others = [0, 1, 3]
    alone = dense_advantages(rewards[others], mask[others], num_generations=3, **settings)
    np.testing.assert_allclose(fast[others], alone, atol=1e-12)


def test_a_completion_with_no_peer_has_no_advantage_and_no_share_in_the_scale() -> None:
    rewards, mask = batch()
    rewards[1:SIZE] = np.nan
    fast = dense_advantages(rewards, mask, num_generations=SIZE, baseline="sequence")
    assert (fast[:SIZE] == 0).all()
    rest = dense_advantages(rewards[SIZE:], mask[SIZE:], num_generations=SIZE, baseline="sequence")
    np.testing.assert_allclose(fast[SIZE:], rest, atol=1e-12)
    kept = dense_advantages(rewards, mask, num_generations=SIZE, baseline="none")
    assert (kept[0] != 0).any()


def test_rewards_of_none_and_masks_of_zero_give_zeros_and_no_warning() -> None:
    fast = dense_advantages(np.full((4, 3), np.nan), np.ones((4, 3)), num_generations=2)
    assert (fast == 0).all()
    fast = dense_advantages(np.ones((4, 3)), np.zeros((4, 3)), num_generations=2, centre=True)
    assert (fast == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
        ({"gamma": math.nan}, "gamma"),
        ({"baseline": "mean"}, "baseline must be one of"),
        ({"scale": "std"}, "scale must be one of"),
        ({"num_generations": 3}, "4 completions are no whole groups of 3"),
    ],
)
def test_what_is_none_of_the_choices_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense_advantages(np.ones((4, 2)), np.ones((4, 2)), **({"num_generations": 2} | settings))
