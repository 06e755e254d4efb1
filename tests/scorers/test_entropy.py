"""The entropy scorer: the formula on a real model's logits, the chain rule, and log-probs from the
same pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from fakes import oracle, tiny
from fakes.samples import sample_of_ids
from tokenreward.contract import Outputs
from tokenreward.scorers.entropy import Scorer
from tokenreward.wire import RewardsRequest, parse

WHAT = oracle.Response(np.array([5, 90, 17]), np.array([40, 41, 200, 7, 300]))
ITEM = {"prompt": WHAT.prompt.tolist(), "response": WHAT.response.tolist()}


@pytest.fixture
def logits(language_model: Path) -> np.ndarray:
    """Float64 logits [r, vocabulary] at the positions that predict the response."""
    exact = oracle.double(AutoModelForCausalLM.from_pretrained(language_model))
    return oracle.logits(exact, WHAT.ids)[len(WHAT.prompt) - 1 : -1]


async def ask(engine: Any, **more: Any) -> dict[str, Any]:
    reply = await engine.score(parse(RewardsRequest, {"items": [ITEM], **more}))
    return reply.items[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
async def test_rewards_are_the_entropies_before_each_token(
    make_engine: Callable[..., Any], logits: np.ndarray, temperature: float
) -> None:
    engine = make_engine("causal_lm", ["entropy"])
    item = await ask(engine, scorer="entropy", options={"temperature": temperature})
    truth = oracle.entropy(logits / temperature)
    np.testing.assert_allclose(item.rewards, truth, atol=1e-5)
    assert item.score == pytest.approx(truth.sum(), abs=1e-4)
    mean = await ask(
        engine, scorer="entropy", options={"temperature": temperature, "aggregation": "mean"}
    )
    assert mean.score == pytest.approx(truth.mean(), abs=1e-4)


async def test_log_probs_and_entropies_of_a_reference_model_come_from_one_row_in_one_pass(
    make_engine: Callable[..., Any], logits: np.ndarray
) -> None:
    logprob = {"type": "endogenous", "name": "logprob", "options": {"form": "logprob"}}
    engine = make_engine("causal_lm", [logprob, "entropy"])
    passes: list[int] = []
    run = engine.runner.layout.run
    engine.runner.layout.run = lambda work: passes.append(len(work)) or run(work)
    results = (await ask(engine, scorers=["logprob", "entropy"])).scorers
    assert passes == [1]
    chosen = logits[np.arange(len(WHAT.response)), WHAT.response]
    np.testing.assert_allclose(
        results["logprob"].rewards, chosen - oracle.logsumexp(logits), atol=1e-4
    )
    np.testing.assert_allclose(results["entropy"].rewards, oracle.entropy(logits), atol=1e-5)


def outputs_of(along: np.ndarray) -> list[Outputs]:
    """Entropies [r + 1] of one row."""
    return [
        Outputs(
            chosen=np.zeros(len(along) - 1, dtype=np.float32),
            entropy={1.0: along.astype(np.float32)},
        )
    ]


def test_the_mean_of_the_sums_over_all_responses_is_the_entropy_of_the_responses() -> None:
    generator = np.random.default_rng(0)
    first, second = (
        generator.normal(size=5) * 2,
        generator.normal(size=(5, 5)) * 2,
    )  # logits; the second by the first
    p_first, p_second = (np.exp(z - oracle.logsumexp(z)[..., None]) for z in (first, second))
    joint = p_first[:, None] * p_second
    expected = 0.0
    for a in range(5):
        along = np.array([oracle.entropy(first), oracle.entropy(second[a]), 99.0])
        for b in range(5):
            sample = sample_of_ids(
                np.array([1]), np.array([a, b]), terminal=False, keep=np.ones(2, dtype=np.bool_)
            )
            signals = Scorer().score(sample, outputs_of(along), Scorer.Options())
            expected += joint[a, b] * signals.score
    assert expected == pytest.approx(-(joint * np.log(joint)).sum(), abs=1e-6)


def test_masked_tokens_are_in_no_aggregate() -> None:
    along = np.arange(5)
    sample = sample_of_ids(
        np.array([1]), np.array([1, 2, 3, 4]), False, np.array([True, False, True, False])
    )
    for aggregation, truth in (("sum", 2.0), ("mean", 1.0)):
        options = Scorer.Options(aggregation=aggregation)
        assert Scorer().score(sample, outputs_of(along), options).score == truth


async def test_a_flat_and_a_decided_model_have_the_entropies_that_one_knows(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["entropy"])
    flat = await ask(engine, scorer="entropy", options={"temperature": 1e6})
    np.testing.assert_allclose(flat.rewards, np.log(tiny.VOCAB_SIZE), atol=1e-4)
    decided = await ask(engine, scorer="entropy", options={"temperature": 1e-3})
    np.testing.assert_allclose(decided.rewards, 0.0, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"aggregation": "discounted_sum"}, {"form": "logprob"}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scorer.Options(**options)
