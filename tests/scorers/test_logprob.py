"""The `logprob` scorer: log-probs, the most likely tokens, ranks and candidates on a real model, in
float64 by torch's own `log_softmax`; what it refuses, and what one request may ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from fakes import oracle, tiny
from tokenreward.engine.outputs import OutputBudget
from tokenreward.errors import Overloaded
from tokenreward.scorers.logprob import MAX_CANDIDATES, MAX_TOP_K, Scorer
from tokenreward.wire import ItemResult, RewardsRequest, parse

WHAT = oracle.Response(np.array([5, 90, 17]), np.array([40, 41, 200, 7, 300]))
ITEM = {"prompt": WHAT.prompt.tolist(), "response": WHAT.response.tolist()}
CANDIDATES = [300, 4, 7]


@pytest.fixture
def logits(language_model: Path) -> torch.Tensor:
    """Float64 logits [r, vocabulary] at the positions that predict the response."""
    exact = oracle.double(AutoModelForCausalLM.from_pretrained(language_model))
    return torch.from_numpy(oracle.logits(exact, WHAT.ids)[len(WHAT.prompt) - 1 : -1])


async def ask(engine: Any, item: dict[str, Any] = ITEM, **options: Any) -> ItemResult:
    request = {"scorer": "logprob", "items": [item], "options": options}
    return (await engine.score(parse(RewardsRequest, request))).items[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
async def test_everything_is_torchs_log_softmax_at_the_temperature(
    make_engine: Callable[..., Any], logits: torch.Tensor, temperature: float
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    item = await ask(engine, temperature=temperature, top_k=6, candidates=CANDIDATES)
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    chosen = log_probs[torch.arange(5), torch.from_numpy(WHAT.response)]
    np.testing.assert_allclose(item.rewards, chosen, atol=1e-4)
    assert item.score == pytest.approx(float(chosen.sum()), abs=1e-4)
    top = log_probs.topk(6)
    assert item.top_token_ids.tolist() == top.indices.tolist()
    np.testing.assert_allclose(item.top_logprobs, top.values, atol=1e-4)
    np.testing.assert_allclose(item.candidate_logprobs, log_probs[:, CANDIDATES], atol=1e-4)
    assert item.ranks.tolist() == (1 + (log_probs > chosen[:, None]).sum(-1)).tolist()
    dtypes = {name: getattr(item, name).dtype.name for name in ("ranks", "top_logprobs")}
    assert dtypes == {"ranks": "int32", "top_logprobs": "float32"}


async def test_what_is_not_wanted_is_not_there_and_zero_gives_the_ranks_alone(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    plain, ranked = await ask(engine), await ask(engine, top_k=0)
    assert (plain.ranks, plain.top_logprobs, plain.candidate_logprobs) == (None, None, None)
    assert (ranked.top_logprobs, ranked.top_token_ids) == (None, None)
    assert ranked.ranks.shape == (5,)
    np.testing.assert_allclose(plain.rewards, ranked.rewards, atol=1e-5)


async def test_it_is_endogenous_with_its_form_logprob(make_engine: Callable[..., Any]) -> None:
    engine = make_engine("causal_lm", ["logprob", "endogenous"])
    request = {
        "scorers": ["logprob", "endogenous"],
        "items": [ITEM],
        "options": {
            "logprob": {"temperature": 0.7, "aggregation": "mean"},
            "endogenous": {"form": "logprob", "temperature": 0.7, "aggregation": "mean"},
        },
    }
    results = (await engine.score(parse(RewardsRequest, request))).items[0].scorers
    assert results["logprob"].rewards.tolist() == results["endogenous"].rewards.tolist()
    assert results["logprob"].score == results["endogenous"].score


async def test_two_labels_of_one_request_each_get_their_own_number_of_tokens(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    names = ["few=logprob", "many=logprob", "none=logprob"]
    options = {"few=logprob": {"top_k": 2}, "many=logprob": {"top_k": 9, "candidates": [7, 7]}}
    request = {"scorers": names, "items": [ITEM], "options": options}
    few, many, none = (await engine.score(parse(RewardsRequest, request))).items[0].scorers.values()
    assert few.top_token_ids.shape == few.top_logprobs.shape == (5, 2)
    assert few.top_token_ids.tolist() == many.top_token_ids[:, :2].tolist()
    assert many.candidate_logprobs.shape == (5, 2)
    assert (few.candidate_logprobs, none.ranks) == (None, None)


async def test_rows_of_the_head_without_a_token_count_like_all_others(tmp_path: Path) -> None:
    """Checkpoints round their vocabulary up. The model's own softmax is over all rows."""
    from tokenreward.engine import Engine
    from tokenreward.settings import DeploymentSettings

    tokenizer_size = len(tiny.tokenizer())
    model = tiny.model("llama")
    model.resize_token_embeddings(tiny.VOCAB_SIZE + 64, mean_resizing=False)
    model.lm_head.weight.data[-1] = 0.5 * model.lm_head.weight.data[7]
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = DeploymentSettings(
        name="t", checkpoint=str(tmp_path), task="causal_lm", scorers=[{"type": "logprob"}]
    )
    engine = Engine.load(settings, say=lambda line: None)
    padding = [tiny.VOCAB_SIZE + 63]
    item = await ask(engine, top_k=128, candidates=padding)
    z = torch.from_numpy(oracle.logits(oracle.double(model), WHAT.ids)[2:-1])
    log_probs = torch.log_softmax(z, dim=-1)
    assert log_probs.shape[1] > tokenizer_size
    np.testing.assert_allclose(item.candidate_logprobs, log_probs[:, padding], atol=1e-4)
    assert item.top_token_ids.tolist() == log_probs.topk(128).indices.tolist()


async def test_masked_tokens_are_read_like_all_others_and_are_no_reward(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    whole = await ask(engine, top_k=3)
    masked = await ask(engine, {**ITEM, "mask": [0, 1, 1, 0, 1]}, top_k=3)
    assert masked.rewards[[0, 3]].tolist() == [0.0, 0.0]
    assert masked.top_token_ids.tolist() == whole.top_token_ids.tolist()
    assert masked.score == pytest.approx(float(whole.rewards[[1, 2, 4]].sum()), abs=1e-5)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"candidates": [5]}])
async def test_spans_have_no_tables(make_engine: Callable[..., Any], options: Any) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    item = {"prompt": "2+2?", "response": "It is 4.", "spans": [[0, 2], [2, 8]]}
    assert (await ask(engine, item)).error is None
    error = (await ask(engine, item, **options)).error
    assert (error.code, error.param) == ("unsupported_text", "items[0].spans")
    assert "`top_k`" in error.message


async def test_ids_that_the_model_does_not_have_fail_the_item(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    error = (await ask(engine, candidates=[5, tiny.VOCAB_SIZE])).error
    assert error.code == "token_out_of_vocabulary"


async def test_a_log_prob_of_minus_infinity_is_an_error(make_engine: Callable[..., Any]) -> None:
    """JSON has no such number, and a trainer would multiply it."""
    engine = make_engine("causal_lm", ["logprob"])
    with torch.no_grad():
        weight = engine.runner.layout.language_head.weight
        weight[9] = 1e38  # a logit of plus or minus infinity
    assert (await ask(engine, candidates=[9])).error.code == "non_finite"


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": -1},
        {"top_k": MAX_TOP_K + 1},
        {"top_k": True},
        {"candidates": []},
        {"candidates": [-1]},
        {"candidates": [0] * (MAX_CANDIDATES + 1)},
        {"temperature": 0.0},
        {"form": "logprob"},
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Scorer.Options.model_validate(options)


async def test_items_past_the_numbers_of_a_request_fail_alone(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenreward.contract import RequestBudget

    engine = make_engine("causal_lm", ["logprob"])
    num_numbers = 2 * (5 * 2 * 10 + 6 * 3)  # of two items
    monkeypatch.setattr(
        "tokenreward.engine.preprocess.RequestBudget",
        lambda: RequestBudget(num_numbers=num_numbers),
    )
    options = {"top_k": 10, "candidates": [1, 2, 3]}
    request = {"scorer": "logprob", "items": [ITEM] * 3, "options": options}
    items = (await engine.score(parse(RewardsRequest, request))).items
    assert [item.error and item.error.code for item in items] == [None, None, "sequence_too_long"]
    assert "fewer" in items[2].error.message
    assert (await ask(engine)).error is None  # who wants none spends none


async def test_numbers_count_until_the_result_is_there_and_past_the_budget_it_is_503(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    engine.outputs = OutputBudget(5 * 2 * 10)
    assert (await ask(engine, top_k=10)).error is None
    assert engine.outputs.num_held == 0
    with engine.outputs.hold(1):
        with pytest.raises(Overloaded) as caught:
            await ask(engine, top_k=10)
        assert caught.value.retry_after_s > 0
        assert (await ask(engine)).error is None
    assert engine.outputs.num_held == 0
