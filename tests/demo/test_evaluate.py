"""The figures: statistics are right, formulas hold, the embedded models reach what the model card
claims."""

import re

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tokenreward.demo import WEIGHTS, scoring
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.evaluate import (
    Estimate,
    estimate,
    judge,
    load_models,
    measure,
    roc_auc,
)
from tokenreward.demo.world import EVALUATION_SEED, OfferPair, overlaps, sample_pairs

NUM_PAIRS = 200

Checkpoints = tuple[PreTrainedTokenizerFast, dict[str, PreTrainedModel]]


@pytest.fixture(scope="module")
def checkpoints() -> Checkpoints:
    return load_models()


@pytest.fixture(scope="module")
def pairs() -> list[OfferPair]:
    return sample_pairs(NUM_PAIRS, EVALUATION_SEED, "held_out")


@pytest.fixture(scope="module")
def figures(checkpoints: Checkpoints, pairs: list[OfferPair]) -> dict[str, Estimate]:
    return measure(*checkpoints, pairs)


def test_roc_auc_by_example() -> None:
    assert roc_auc([True, False], [1.0, 0.0]) == 1.0
    assert roc_auc([True, False], [0.0, 1.0]) == 0.0
    assert roc_auc([True, False, False], [0.5, 0.5, 0.0]) == 0.75
    assert roc_auc([True, False, True, False], [3.0, 2.0, 1.0, 0.0]) == 0.75


def test_roc_auc_needs_both_labels() -> None:
    with pytest.raises(ValueError, match="one label of each kind"):
        roc_auc([True, True], [0.0, 1.0])


def test_interval_covers_the_mean_and_shrinks() -> None:
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high, num = estimate(values[:40].tolist())
    assert low < mean < high
    assert num == 40
    _, low_of_many, high_of_many, _ = estimate(values.tolist())
    assert high_of_many - low_of_many < high - low


def test_a_token_overlaps_when_a_character_is_shared() -> None:
    assert overlaps((2, 4), [(3, 9)])
    assert not overlaps((2, 4), [(4, 9), (0, 2)])


def test_soft_bellman_telescopes_to_logprob_and_the_first_value(
    checkpoints: Checkpoints, pairs: list[OfferPair]
) -> None:
    tokenizer, models = checkpoints
    prompt_ids, ids, _ = scoring.encode(tokenizer, user_turn(pairs[0]), pairs[0].faithful)
    logits = scoring.response_logits(models["sft"], prompt_ids, ids)
    total = scoring.soft_bellman(logits, ids).sum()
    expected = scoring.logprob(logits, ids).sum() + logits[0].logsumexp(-1)
    torch.testing.assert_close(total, expected, atol=1e-3, rtol=1e-4)


def test_attention_credit_sums_to_the_score(
    checkpoints: Checkpoints, pairs: list[OfferPair]
) -> None:
    tokenizer, models = checkpoints
    prompt_ids, ids, _ = scoring.encode(tokenizer, user_turn(pairs[0]), pairs[0].corrupted)
    scores, rewards = judge(models, prompt_ids, ids)
    for name in ("attention_dense", "uniform", "last"):
        assert float(rewards[name].sum()) == pytest.approx(scores["reward_model"], rel=1e-4)


@pytest.mark.parametrize("name", ["logprob mean", "soft_bellman mean", "reward_model"])
def test_faithful_is_preferred_in_ninety_five_percent(
    figures: dict[str, Estimate], name: str
) -> None:
    mean, *_ = figures[f"pair: {name}"]
    assert mean >= 0.95


def test_low_logprob_points_at_the_wrong_characters(figures: dict[str, Estimate]) -> None:
    mean, *_ = figures["token (differing): logprob"]
    assert mean >= 0.95


def test_attention_points_at_the_wrong_characters_better_than_uniform_and_last(
    figures: dict[str, Estimate],
) -> None:
    mean, low, _, _ = figures["token (differing): attention_dense"]
    assert mean >= 0.65
    for name in ("uniform", "last"):
        _, _, high, _ = figures[f"token (differing): {name}"]
        assert low > high


def test_attention_prefers_wrong_values_over_right_ones(
    figures: dict[str, Estimate],
) -> None:
    """Pointing at any value would do for the test above; here only values are compared."""
    _, low, _, _ = figures["token (among values): attention_dense"]
    assert low > 0.5


def test_model_card_reports_what_the_models_do(figures: dict[str, Estimate]) -> None:
    """The card's figures are of more pairs; these few hundred must agree within what so few can
    tell."""
    card = (WEIGHTS.parent / "MODEL_CARD.md").read_text()
    rows = re.findall(
        r"^\| ([^|]+) \| ([-\d.]+) \| [-\d.]+ to [-\d.]+ \| (\d+) \|$", card, re.MULTILINE
    )
    assert {name for name, _, _ in rows} == set(figures)
    for name, card_mean, count in rows:
        assert int(count) >= 500
        mean, *_ = figures[name]
        assert float(card_mean) == pytest.approx(mean, abs=0.06)
