"""What every scorer promises, with the options that `conftest` chooses: a new file in scorers/ is
tested by existing.

No scorer is named here. What differs between scorers is asked of the scorer: the tokens that it
wants of a tokenizer, the model that it reads, the fields that it takes, and the fields that it
refuses as token ids.
"""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import prm, tiny
from fakes.samples import single_tokens_of
from tokenreward import credit as credits
from tokenreward.contract import Options
from tokenreward.scorers import resolve
from tokenreward.wire import ItemResult, RewardsRequest, parse

Pairs = list[tuple[list[int], list[int]]]
Items = list[dict[str, Any]]

IDS = st.lists(st.integers(3, 319), min_size=1, max_size=25)
PAIRS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8)
# Neither is what its text tokenises to: every byte of the texts is a token of its own.
UNLIKE_TEXT = tuple(
    [tiny.tokenizer().convert_tokens_to_ids(letter) for letter in text]
    for text in ("manager", "salary")
)
BOUND = 1e-5
NAME = "served"  # that requests use; a type may be no name

few = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)


@pytest.fixture(scope="module")
def engine(name: str, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine that serves the scorer, on a tiny checkpoint of the kind that it reads."""
    from tokenreward.engine import Engine
    from tokenreward.settings import DeploymentSettings

    scorer = resolve(name)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    choice = scorer.Options.model_validate(options)
    tokenizer.add_tokens(single_tokens_of(scorer, choice))
    task = scorer.task_for(choice) or "causal_lm"
    checkpoint = prm.save(tmp_path_factory.mktemp("model"), tokenizer, task)
    more = {}
    if "reference" in scorer.models:
        reference = prm.save(tmp_path_factory.mktemp("reference"), tokenizer, task, seed=1)
        more["reference_checkpoint"] = str(reference)
    deployment = DeploymentSettings(
        name="t",
        checkpoint=str(checkpoint),
        task=task,
        scorers=[{"type": name, "name": NAME, "options": options}],
        **more,
    )
    return Engine.load(deployment, say=lambda line: None)


@pytest.fixture(scope="module")
def score(engine: Any) -> Callable[..., list[ItemResult]]:
    """`score(items, **request)`: the results of the items."""

    async def run(items: Items, **more: Any) -> list[ItemResult]:
        # An engine belongs to one event loop; what it has loaded does not.
        own = type(engine)(
            engine.settings,
            engine.checkpoint,
            engine.runner.layout,
            lambda *args, **labels: None,
            engine.tokenizer,
        )
        try:
            request = parse(RewardsRequest, {"scorer": NAME, "items": items, **more})
            return (await own.score(request)).items
        finally:
            await own.close()

    return lambda items, **more: asyncio.run(run(items, **more))


@pytest.fixture(scope="module")
def items_of(name: str, score: Callable[..., list[ItemResult]]) -> Callable[[Pairs], Items]:
    """`items_of(pairs)`: an item of each prompt and response, which the scorer can read.

    A field that the scorer refuses as ids, with `unsupported_text`, is sent as text (a prompt) or
    as the ids of a text (a response, whose length has to be known).
    """
    refuses: set[str] = set()
    extra = dict.fromkeys(resolve(name).takes, -1.5)

    def items_of(pairs: Pairs) -> Items:
        return [{**extra, **readable(prompt, response)} for prompt, response in pairs]

    def readable(prompt: list[int], response: list[int]) -> dict[str, Any]:
        item: dict[str, Any] = {"prompt": prompt, "response": response}
        if "items[0].prompt" in refuses:
            item["prompt"] = tiny.tokenizer().decode(prompt)
        if "items[0].response" in refuses:
            text = "4" + tiny.tokenizer().decode(response)
            item["response"] = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
        return item

    for _ in ("prompt", "response"):
        (result,) = score(items_of([UNLIKE_TEXT]))
        if result.error is not None and result.error.code == "unsupported_text":
            refuses.add(str(result.error.param))
    return items_of


def assert_same(left: ItemResult, right: ItemResult) -> None:
    """Contract 2.6 in fp32: the bound scales with what the item reads; tiny models read numbers of
    order 10."""
    scale = max(1.0, float(np.abs(left.rewards).max()), 10.0)
    np.testing.assert_allclose(left.rewards, right.rewards, rtol=0, atol=BOUND * scale)
    bound = BOUND * max(scale, float(np.abs(left.rewards).sum()))
    assert left.score == pytest.approx(right.score, abs=bound)


@few
@given(pairs=PAIRS)
def test_rewards_are_finite_float32_of_the_promised_length(
    score: Callable[..., Any], items_of: Callable[[Pairs], Items], pairs: Pairs
) -> None:
    items = items_of(pairs)
    for result, item in zip(score(items), items, strict=True):
        assert result.error is None
        assert result.rewards.dtype == np.float32
        assert result.rewards.shape == (len(item["response"]),)
        assert np.isfinite(result.rewards).all()


@few
@given(pairs=PAIRS, seed=st.integers(0, 1000))
def test_an_item_is_the_same_alone_in_any_batch_and_in_any_order(
    score: Callable[..., Any], items_of: Callable[[Pairs], Items], pairs: Pairs, seed: int
) -> None:
    items = items_of(pairs)
    together = score(items)
    order = np.random.default_rng(seed).permutation(len(items)).tolist()
    shuffled = score([items[i] for i in order])
    for place, i in enumerate(order):
        assert_same(together[i], shuffled[place])
    assert_same(together[0], score(items[:1])[0])


@settings(few, max_examples=5)
@given(
    prompt=st.lists(st.integers(3, 319), min_size=40, max_size=60),
    responses=st.lists(IDS, min_size=2, max_size=6),
)
def test_an_item_is_the_same_alone_and_among_others_of_its_prompt(
    score: Callable[..., Any],
    items_of: Callable[[Pairs], Items],
    prompt: list[int],
    responses: list[list[int]],
) -> None:
    """A prompt of this length is read once for all of them; one of them is there twice."""
    items = items_of([(prompt, response) for response in [*responses, responses[0]]])
    for result, item in zip(score(items), items, strict=True):
        assert_same(result, score([item])[0])


def test_one_bad_item_fails_alone(
    score: Callable[..., Any], items_of: Callable[[Pairs], Items]
) -> None:
    items = items_of([([5], [6, 7])] * 3)
    items[1]["response"] = [100_000]
    first, bad, last = score(items)
    assert bad.error.code == "token_out_of_vocabulary"
    assert_same(first, last)


def test_masked_units_are_exactly_zero(
    score: Callable[..., Any], items_of: Callable[[Pairs], Items]
) -> None:
    (item,) = items_of([([5, 6], [7, 8, 9, 10])])
    mask = [0] * len(item["response"])
    mask[0] = mask[-1] = 1
    (result,) = score([{**item, "mask": mask}])
    assert result.rewards[1:-1].tolist() == [0.0] * (len(mask) - 2)


def test_credits_that_conserve_the_score_do(
    name: str, score: Callable[..., Any], items_of: Callable[[Pairs], Items]
) -> None:
    for credit, needs in credits.NEEDS.items():
        if not needs <= resolve(name).gives:
            continue
        (result,) = score(items_of([([5, 6], [7, 8, 9, 10])]), credit={"name": credit})
        bound = BOUND * max(1.0, float(np.abs(result.rewards).sum()))
        if credit in ("last", "uniform", "attention"):
            total = float(result.rewards.astype(np.float64).sum())
            assert total == pytest.approx(result.score, abs=bound)
        if credit == "discount":
            assert result.rewards[-1] == pytest.approx(result.score, abs=bound)


def test_sums_over_spans_equal_sums_over_tokens(
    score: Callable[..., Any], items_of: Callable[[Pairs], Items]
) -> None:
    """Under each scorer's default credit, which is a sum for all of them."""
    text = "It is 4. 東京, yes!"
    (item,) = items_of([([5], [6])])
    whole = {**item, "prompt": "2+2?", "response": text}
    cut = {**whole, "spans": [[0, 3], [3, 3], [3, 9], [9, 10], [10, len(text)]]}
    tokens, spans = score([whole, cut])
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
    if scorer.log_probs_options is not None:
        scorer.Options.model_validate(scorer.log_probs_options)
        assert "values" in scorer.gives
    module = sys.modules[type(scorer).__module__]
    assert module.__name__.split(".")[-1] == name.partition(":")[0].split(".")[-1]
    assert len(str(module.__doc__)) > 70


def test_the_listing_says_what_other_scorers_can_have_of_it(name: str, engine: Any) -> None:
    """The gateway reads it there, and so knows no scorer by name."""
    scorer = resolve(name)
    (entry,) = engine.describe()
    assert entry["takes"] == sorted(scorer.takes)
    assert entry["log_probs_options"] == scorer.log_probs_options
    assert ("score_from" in entry["options"]) == ("score" in scorer.takes)


def test_what_it_says_are_log_probabilities_are_the_response_tokens(
    name: str, score: Callable[..., Any], engine: Any
) -> None:
    """So that it can be the reference of a KL penalty."""
    options = resolve(name).log_probs_options
    if options is None:
        return
    from fakes import oracle

    prompt, response = [5, 6, 7], [8, 9, 10, 11]
    request = {"options": options, "credit": {"name": "values"}}
    (result,) = score([{"prompt": prompt, "response": response}], **request)
    row = oracle.Response(np.array(prompt), np.array(response))
    logits = oracle.logits(oracle.double(engine.checkpoint.model), row.ids)
    truth = oracle.log_probs(logits, row, temperature=1.0)
    np.testing.assert_allclose(result.rewards, truth, rtol=0, atol=1e-4)
