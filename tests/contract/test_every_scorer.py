"""What every scorer promises, over the whole folder: a new file in scorers/ is tested by
existing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import tiny
from tokenreward import credit as credits
from tokenreward.contract import Options
from tokenreward.scorers import known_types, resolve
from tokenreward.wire import RewardsRequest, parse

IDS = st.lists(st.integers(3, 319), min_size=1, max_size=25)
ITEMS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8)
BOUND = 1e-5
OPTIONS = {
    "generative": {"yes": ["Y"], "no": ["N"]},  # the tiny tokenizer knows no whole word
    "process": {"layout": "skywork"},  # nor another layout's tag
}
READS_TEXT = {"treg"}  # refuses a prompt of ids
READS_STEPS = {"process"}  # refuses a response of ids that are no text's tokens


@pytest.fixture(scope="module", params=known_types())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another language model, for a scorer that compares two."""
    return tiny.save(tmp_path_factory.mktemp("second"), seed=1)


@pytest.fixture(scope="module")
def score(name: str, language_model: Any, reward_model: Any, second: Path) -> Callable[..., Any]:
    """`await score(items, **request)` on an engine that serves this scorer, shared by the module's
    tests."""
    from tokenreward.engine import Engine
    from tokenreward.settings import DeploymentSettings

    scorer = resolve(name)
    task = scorer.task_for(scorer.Options(**OPTIONS.get(name, {}))) or "causal_lm"
    folder = language_model if task == "causal_lm" else reward_model
    scorers = [{"type": name, "options": OPTIONS.get(name, {})}]
    pair = {"reference_checkpoint": str(second)} if "reference" in resolve(name).models else {}
    deployment = DeploymentSettings(
        name="t", checkpoint=str(folder), task=task, scorers=scorers, **pair
    )
    loaded = Engine.load(deployment, say=lambda line: None)

    async def run(items: list[dict[str, Any]], **more: Any) -> list[ItemResult]:
        if name in READS_TEXT:
            items = [{**item, "prompt": text_of(item["prompt"])} for item in items]
        items = [
            {"score": -1.5, **item} for item in items
        ]  # for scorers that spread one; others ignore it
        words = loaded.tokenizer
        engine = Engine(
            deployment, loaded.checkpoint, loaded.choice, lambda *args, **labels: None, words
        )
        try:
            return (
                await engine.score(parse(RewardsRequest, {"scorer": name, "items": items, **more}))
            ).items
        finally:
            await engine.close()

    return run


def text_of(prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else str(tiny.tokenizer().decode(prompt))


def as_items(pairs: list[tuple[list[int], list[int]]]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "response": response} for prompt, response in pairs]


def readable(
    name: str, pairs: list[tuple[list[int], list[int]]]
) -> list[tuple[list[int], list[int]]]:
    """The same, with responses that the scorer can read."""
    if name not in READS_STEPS:
        return pairs
    texts = ["4" + tiny.tokenizer().decode(response) for _, response in pairs]
    ids = [tiny.tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [(prompt, response) for (prompt, _), response in zip(pairs, ids, strict=True)]


def run(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Contract 2.6 in fp32: the bound scales with what the item reads; tiny models read numbers of
    order 10."""
    scale = max(1.0, float(np.abs(left.rewards).max()), 10.0)
    np.testing.assert_allclose(left.rewards, right.rewards, rtol=0, atol=BOUND * scale)
    assert left.score == pytest.approx(
        right.score, abs=BOUND * max(scale, float(np.abs(left.rewards).sum()))
    )


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=ITEMS)
def test_rewards_are_finite_float32_of_the_promised_length(
    name: str, score: Callable[..., Any], pairs: Any
) -> None:
    pairs = readable(name, pairs)
    for item, (_, response) in zip(run(score(as_items(pairs))), pairs, strict=True):
        assert item.error is None
        assert item.rewards.dtype == np.float32
        assert item.rewards.shape == (len(response),)
        assert np.isfinite(item.rewards).all()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=ITEMS, seed=st.integers(0, 1000))
def test_an_item_is_the_same_alone_in_any_batch_and_in_any_order(
    name: str, score: Callable[..., Any], pairs: Any, seed: int
) -> None:
    pairs = readable(name, pairs)
    together = run(score(as_items(pairs)))
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    shuffled = run(score(as_items([pairs[i] for i in order])))
    for place, i in enumerate(order):
        assert_same(together[i], shuffled[place])
    assert_same(together[0], run(score(as_items(pairs[:1])))[0])


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompt=st.lists(st.integers(3, 319), min_size=40, max_size=60),
    responses=st.lists(IDS, min_size=2, max_size=6),
)
def test_an_item_is_the_same_alone_and_among_others_of_its_prompt(
    name: str, score: Callable[..., Any], prompt: list[int], responses: list[list[int]]
) -> None:
    """A prompt of this length is read once for all of them; one of them is there twice."""
    pairs = readable(name, [(prompt, response) for response in [*responses, responses[0]]])
    together = run(score(as_items(pairs)))
    for item, pair in zip(together, pairs, strict=True):
        assert_same(item, run(score(as_items([pair])))[0])


def test_one_bad_item_fails_alone(score: Callable[..., Any]) -> None:
    items = as_items([([5], [6, 7]), ([5], [100_000]), ([5], [6, 7])])
    first, bad, last = run(score(items))
    assert bad.error.code == "token_out_of_vocabulary"
    assert_same(first, last)


def test_masked_units_are_exactly_zero(score: Callable[..., Any]) -> None:
    (item,) = run(score([{"prompt": [5, 6], "response": [7, 8, 9, 10], "mask": [1, 0, 0, 1]}]))
    assert item.rewards[[1, 2]].tolist() == [0.0, 0.0]


def test_credits_that_conserve_the_score_do(name: str, score: Callable[..., Any]) -> None:
    scorer = resolve(name)
    for credit, needs in credits.NEEDS.items():
        if not needs <= scorer.gives:
            continue
        (item,) = run(
            score([{"prompt": [5, 6], "response": [7, 8, 9, 10]}], credit={"name": credit})
        )
        bound = BOUND * max(1.0, float(np.abs(item.rewards).sum()))
        if credit in ("last", "uniform", "attention"):
            assert float(item.rewards.astype(np.float64).sum()) == pytest.approx(
                item.score, abs=bound
            )
        if credit == "discount":
            assert item.rewards[-1] == pytest.approx(item.score, abs=bound)


def test_sums_over_spans_equal_sums_over_tokens(score: Callable[..., Any]) -> None:
    """Under each scorer's default credit, which is a sum for all of them."""
    text = "It is 4. 東京, yes!"
    whole = {"prompt": "2+2?", "response": text}
    cut = {**whole, "spans": [[0, 3], [3, 3], [3, 9], [9, 10], [10, len(text)]]}
    tokens, spans = run(score([whole, cut]))
    assert float(spans.rewards.sum()) == pytest.approx(float(tokens.rewards.sum()), abs=1e-3)


def test_options_are_frozen_documented_and_strict(name: str) -> None:
    options = resolve(name).Options
    assert issubclass(options, Options)
    assert options.model_config["frozen"]
    assert options.model_config["extra"] == "forbid"
    for field_name, field in options.model_fields.items():
        assert field.description, field_name
    options()  # every option has a default


def test_the_scorer_says_what_it_is(name: str) -> None:
    scorer = resolve(name)
    assert scorer.score_is
    assert scorer.gives
    assert credits.NEEDS[scorer.default_credit] <= scorer.gives
    assert type(scorer).__module__.endswith(name)
    module = __import__(type(scorer).__module__, fromlist=["__doc__"])
    assert len(module.__doc__) > 80
