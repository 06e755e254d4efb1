"""The figures: statistics are right, formulas hold, the embedded models reach what the model card
claims."""

import re

import numpy as np
import pytest
import torch

from tokenreward.demo import WEIGHTS, scoring
from tokenreward.demo.corpus import user_turn
from tokenreward.demo.evaluate import (
    MeanWithInterval,
    Models,
    estimate,
    judge,
    load_models,
    measure,
    roc_auc,
)
from tokenreward.demo.world import EVALUATION_SEED, OfferPair, overlaps, sample_pairs

NUM_PAIRS = 200


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models()


@pytest.fixture(scope="module")
def pairs() -> list[OfferPair]:
    return sample_pairs(NUM_PAIRS, EVALUATION_SEED, "held_out")


@pytest.fixture(scope="module")
def figures(models: Models, pairs: list[OfferPair]) -> dict[str, MeanWithInterval]:
    return measure(models, pairs)


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
    few, many = estimate(values[:40].tolist()), estimate(values.tolist())
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low


def test_a_token_overlaps_when_a_character_is_shared() -> None:
    assert overlaps((2, 4), [(3, 9)])
    assert not overlaps((2, 4), [(4, 9), (0, 2)])


def test_soft_bellman_telescopes_to_logprob_and_the_first_value(
    models: Models, pairs: list[OfferPair]
) -> None:
    conversation = scoring.encode(models.tokenizer, user_turn(pairs[0]), pairs[0].faithful)
    logits = scoring.response_logits(models.sft, conversation)
    total = scoring.soft_bellman(logits, conversation.response_ids).sum()
    expected = scoring.logprob(logits, conversation.response_ids).sum() + logits[0].logsumexp(-1)
    torch.testing.assert_close(total, expected, atol=1e-3, rtol=1e-4)


def test_attention_credit_sums_to_the_score(models: Models, pairs: list[OfferPair]) -> None:
    response = judge(models, pairs[0], pairs[0].corrupted)
    for name in ("attention_dense", "uniform", "last"):
        assert float(response.rewards[name].sum()) == pytest.approx(
            response.scores["reward_model"], rel=1e-4
        )


@pytest.mark.parametrize("name", ["logprob mean", "soft_bellman mean", "reward_model"])
def test_faithful_is_preferred_in_ninety_five_percent(
    figures: dict[str, MeanWithInterval], name: str
) -> None:
    assert figures[f"pair: {name}"].mean >= 0.95


def test_low_logprob_points_at_the_wrong_characters(figures: dict[str, MeanWithInterval]) -> None:
    assert figures["token (differing): logprob"].mean >= 0.95


def test_attention_points_at_the_wrong_characters_better_than_uniform_and_last(
    figures: dict[str, MeanWithInterval],
) -> None:
    attention = figures["token (differing): attention_dense"]
    assert attention.mean >= 0.65
    assert attention.low > max(
        figures[f"token (differing): {name}"].high for name in ("uniform", "last")
    )


def test_attention_prefers_wrong_values_over_right_ones(
    figures: dict[str, MeanWithInterval],
) -> None:
    """Pointing at any value would do for the test above; here only values are compared."""
    assert figures["token (among values): attention_dense"].low > 0.5


def test_model_card_reports_what_the_models_do(figures: dict[str, MeanWithInterval]) -> None:
    """The card's figures are of more pairs; these few hundred must agree within what so few can
    tell."""
    card = (WEIGHTS.parent / "MODEL_CARD.md").read_text()
    rows = re.findall(
        r"^\| ([^|]+) \| ([-\d.]+) \| [-\d.]+ to [-\d.]+ \| (\d+) \|$", card, re.MULTILINE
    )
    assert {name for name, _, _ in rows} == set(figures)
    for name, mean, count in rows:
        assert int(count) >= 500
        assert float(mean) == pytest.approx(figures[name].mean, abs=0.06)
