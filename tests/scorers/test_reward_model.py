"""Levels and RED's increments against the model's own call on every prefix, with suffix, mask and
spans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from fakes import oracle, tiny
from fakes.samples import sample_of_ids, watch_needs
from tokenreward.contract import Needs, Outputs
from tokenreward.scorers.reward_model import Scorer
from tokenreward.wire import RewardsRequest, parse

PROMPT, RESPONSE = [5, 6, 7, 250, 11], [40, 41, 9, 300, 12, 77, tiny.END_ID]
SUFFIX = "\n"
VALUES = {"name": "values"}
RED = {"red": True}


@pytest.fixture
def prefixes(reward_model: Path) -> Callable[..., np.ndarray]:
    """RM(x, y_<=t) for t = 0 (the prompt alone) to T, float64: a call of the model's own for each
    prefix."""
    exact = oracle.double(AutoModelForSequenceClassification.from_pretrained(reward_model))

    def of(suffix: list[int], response: list[int] = RESPONSE) -> np.ndarray:
        values = oracle.head_values(exact, np.array(PROMPT + response + suffix))
        start = len(PROMPT) - 1
        return np.append(values[start : start + len(response)], values[-1])

    return of


async def ask(engine: Any, options: dict[str, Any], **item: Any) -> dict[str, Any]:
    entry = {"prompt": PROMPT, "response": RESPONSE} | item
    body = {"scorer": "reward_model", "items": [entry], "options": options, "credit": VALUES}
    return (await engine.score(parse(RewardsRequest, body))).items[0]


def suffix_ids(text: str | None) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"] if text else []


@pytest.mark.parametrize("suffix", [None, SUFFIX])
async def test_increments_are_the_differences_of_the_models_own_calls_on_every_prefix(
    make_engine: Callable[..., Any], prefixes: Callable[..., np.ndarray], suffix: str | None
) -> None:
    item = await ask(make_engine("reward_model", ["reward_model"], suffix_text=suffix), RED)
    scores = prefixes(suffix_ids(suffix))
    bound = 1e-5 * max(1.0, float(np.abs(scores).max()))
    assert item.rewards.dtype == np.float32
    assert np.abs(item.rewards - np.diff(scores)).max() <= 2 * bound
    assert item.score == pytest.approx(scores[-1], abs=bound)
    assert float(item.rewards.astype(np.float64).sum()) == pytest.approx(
        scores[-1] - scores[0], abs=4 * bound
    )


async def test_what_a_suffix_adds_is_the_last_tokens(
    make_engine: Callable[..., Any], prefixes: Callable[..., np.ndarray]
) -> None:
    bare = await ask(make_engine("reward_model", ["reward_model"]), RED)
    carried = await ask(make_engine("reward_model", ["reward_model"], suffix_text=SUFFIX), RED)
    np.testing.assert_allclose(carried.rewards[:-1], bare.rewards[:-1], atol=1e-4)
    added = prefixes(suffix_ids(SUFFIX))[-1] - prefixes([])[-1]
    assert abs(added) > 1e-3
    assert carried.rewards[-1] - bare.rewards[-1] == pytest.approx(added, abs=1e-4)


async def test_levels_are_the_same_prefixes_and_the_score_is_the_same_with_and_without_red(
    make_engine: Callable[..., Any], prefixes: Callable[..., np.ndarray]
) -> None:
    engine = make_engine("reward_model", ["reward_model"])
    levels, red = await ask(engine, {}), await ask(engine, RED)
    np.testing.assert_allclose(levels.rewards, prefixes([])[1:], atol=1e-4)
    np.testing.assert_allclose(np.diff(levels.rewards), red.rewards[1:], atol=1e-4)
    assert levels.score == pytest.approx(red.score, abs=1e-5)


async def test_a_masked_token_is_read_and_its_increment_is_missing_from_the_sum(
    make_engine: Callable[..., Any], prefixes: Callable[..., np.ndarray]
) -> None:
    mask = [1, 1, 0, 0, 1, 1, 1]
    item = await ask(make_engine("reward_model", ["reward_model"]), RED, mask=mask)
    scores = prefixes([])
    np.testing.assert_allclose(item.rewards, np.diff(scores) * mask, atol=1e-4)
    missing = np.diff(scores)[2:4].sum()
    assert float(item.rewards.sum()) == pytest.approx(scores[-1] - scores[0] - missing, abs=1e-3)
    assert item.score == pytest.approx(scores[-1], abs=1e-4)


async def test_a_spans_increment_is_the_sum_of_its_tokens(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("reward_model", ["reward_model"])
    text = "It is 4. Yes."
    whole = await ask(engine, RED, response=text)
    cut = await ask(engine, RED, response=text, spans=[[0, 2], [2, 8], [8, 8], [8, len(text)]])
    assert len(cut.rewards) == 4
    assert float(cut.rewards.sum()) == pytest.approx(float(whole.rewards.sum()), abs=1e-4)


async def test_levels_red_and_attention_read_one_row(make_engine: Callable[..., Any]) -> None:
    computed: list[float] = []

    def report(name: str, value: float, **labels: str) -> None:
        if name == "computed_tokens_total":
            computed.append(value)

    scorers = [
        "reward_model",
        {"type": "reward_model", "name": "red", "options": RED},
        "attention_dense",
    ]
    engine = make_engine("reward_model", scorers, report=report)
    names = ["reward_model", "red", "attention_dense"]
    body = {"scorers": names, "items": [{"prompt": PROMPT, "response": RESPONSE}]}
    reply = await engine.score(parse(RewardsRequest, body))
    assert [reply.items[0].scorers[name].error for name in names] == [None] * 3
    assert sum(computed) == len(PROMPT) + len(RESPONSE)


async def test_without_a_credit_red_changes_nothing_of_the_rewards(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("reward_model", ["reward_model"])
    for options in ({}, RED):
        body = {
            "scorer": "reward_model",
            "items": [{"prompt": PROMPT, "response": RESPONSE}],
            "options": options,
        }
        item = (await engine.score(parse(RewardsRequest, body))).items[0]
        assert item.rewards[:-1].tolist() == [0.0] * (len(RESPONSE) - 1)
        assert item.rewards[-1] == pytest.approx(item.score)


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=60),
    pooled=st.floats(-100, 100, width=32),
)
def test_increments_sum_to_the_score_less_the_prompts(values: list[float], pooled: float) -> None:
    num_tokens = len(values) - 1
    sample = sample_of_ids(
        np.array([3]),
        np.full(num_tokens, 4),
        terminal=False,
        keep=np.ones(num_tokens, dtype=np.bool_),
    )
    outputs = Outputs(values=np.array(values, dtype=np.float32), pooled=pooled)
    signals = Scorer().score(sample, [outputs], Scorer.Options(red=True))
    assert signals.kind == "increments"
    assert signals.values is not None
    assert signals.values.dtype == np.float32
    assert signals.values.shape == (num_tokens,)
    total = float(signals.values.astype(np.float64).sum())
    assert abs(total - (pooled - np.float32(values[0]))) <= 1e-5 * max(
        1.0, float(np.abs(signals.values).sum())
    )


@pytest.mark.parametrize("suffix", [None, SUFFIX])
@pytest.mark.parametrize("options", [{}, RED])
async def test_a_credit_of_the_score_alone_has_the_head_read_at_the_pooled_token_alone(
    make_engine: Callable[..., Any],
    prefixes: Callable[..., np.ndarray],
    suffix: str | None,
    options: dict[str, Any],
) -> None:
    engine = make_engine("reward_model", ["reward_model"], suffix_text=suffix)
    needs_log = watch_needs(engine)
    exact = prefixes(suffix_ids(suffix))
    for credit, needs in ((VALUES, Needs(values=True)), ({"name": "last"}, Needs(pooled=True))):
        body = {
            "scorer": "reward_model",
            "items": [{"prompt": PROMPT, "response": RESPONSE}],
            "credit": credit,
        }
        (item,) = (await engine.score(parse(RewardsRequest, body | {"options": options}))).items
        assert needs_log.pop() == needs
        assert item.score == pytest.approx(
            exact[-1], abs=1e-5 * max(1.0, float(np.abs(exact).max()))
        )
    assert item.rewards[-1] == pytest.approx(item.score)
    assert not item.rewards[:-1].any()
