"""The text that scorers write for the items of one request is bounded: an option is sent once and
could be written for thousands of items."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import prm
from tokenreward.contract import MAX_OPTION_CHARACTERS, RequestBudget
from tokenreward.contract.sample import MAX_REQUEST_CHARACTERS
from tokenreward.errors import InvalidField, SequenceTooLong
from tokenreward.scorers._prompts.template import MAX_RENDERED_CHARACTERS
from tokenreward.wire import ItemResult, RewardsRequest, parse

GENERATIVE = {"type": "generative", "options": {"yes": ["Y"], "no": ["N"]}}
RESPONSE = "It is 4."


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`small_budget(100)`: requests from now on have so many characters."""

    def set_budget(num_characters: int) -> None:
        monkeypatch.setattr(
            "tokenreward.engine.preprocess.RequestBudget", lambda: RequestBudget(num_characters)
        )

    return set_budget


async def score(
    engine: Any, scorer: str, items: list[dict[str, Any]], **options: Any
) -> list[ItemResult]:
    request = {"scorer": scorer, "items": items, "options": options}
    return (await engine.score(parse(RewardsRequest, request))).items


def codes(results: list[ItemResult]) -> list[str | None]:
    return [None if result.error is None else result.error.code for result in results]


def test_a_budget_gives_what_it_has_and_takes_nothing_that_it_cannot_give() -> None:
    budget = RequestBudget(10)
    budget.spend(7)
    with pytest.raises(SequenceTooLong, match=f"pass {MAX_REQUEST_CHARACTERS} characters"):
        budget.spend(4)
    budget.spend(3)
    assert budget.num_characters == 0


async def test_items_past_the_budget_fail_alone_and_those_within_are_scored_as_alone(
    make_engine: Callable[..., Any], small_budget: Callable[[int], None]
) -> None:
    engine = make_engine("causal_lm", [GENERATIVE])
    template = "{{ response }}" * 3
    items = [{"prompt": "2+2?", "response": RESPONSE} for _ in range(5)]
    (alone,) = await score(engine, "generative", items[:1], template=template)
    items.append({"prompt": "2+2?", "response": "4"})
    # Three items of three responses; then one response, which the fourth item wastes; then room
    # for the last item, and for no other.
    small_budget(3 * 3 * len(RESPONSE) + len(RESPONSE) + 3)
    results = await score(engine, "generative", items, template=template)
    assert codes(results) == [None] * 3 + ["sequence_too_long"] * 2 + [None]
    for result in results[:3]:
        np.testing.assert_allclose(result.rewards, alone.rewards, atol=1e-5)
    assert results[3].error.param == "items[3]"
    assert not results[3].error.retryable


async def test_items_past_the_budget_cost_neither_time_nor_memory(
    make_engine: Callable[..., Any], small_budget: Callable[[int], None]
) -> None:
    """600 items that show a response 1,400 times are 336 MB of text, and minutes of a tokenizer."""
    engine = make_engine("causal_lm", [GENERATIVE])
    long_item = {"prompt": "2+2?", "response": "4 " * 200, "finished": False}
    small = {"prompt": "2+2?", "response": RESPONSE}
    template = "{{ response }}" * 1400
    assert len(template) < MAX_OPTION_CHARACTERS
    assert MAX_RENDERED_CHARACTERS > 400 * 1400
    small_budget(700_000)
    began = time.monotonic()
    tracemalloc.start()
    try:
        results = await score(engine, "generative", [long_item] * 600, template=template)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20
    assert peak < 50_000_000
    assert codes(results) == ["sequence_too_long"] * 600
    past = ["send fewer items" in result.error.message for result in results]
    assert past == [False] + [True] * 599
    # The next request has a budget of its own.
    assert codes(await score(engine, "generative", [small], template="{{ response }}")) == [None]


async def test_the_instructions_of_treg_count_for_every_item(
    make_engine: Callable[..., Any], small_budget: Callable[[int], None]
) -> None:
    engine = make_engine("causal_lm", ["treg"])
    items = [{"prompt": "2+2?", "response": RESPONSE}] * 3
    small_budget(2 * (len("Be good.") + len("Be bad.")))
    results = await score(engine, "treg", items, better="Be good.", worse="Be bad.")
    assert codes(results) == [None, None, "sequence_too_long"]


async def test_the_system_message_of_process_counts_for_every_item(
    make_engine: Callable[..., Any], small_budget: Callable[[int], None], tmp_path: Path
) -> None:
    folder = prm.save(tmp_path, prm.with_tag(), "reward_model")
    engine = make_engine("reward_model", ["process"], checkpoint=folder)
    messages = [{"role": "user", "content": prm.QUESTION}]
    items = [{"prompt": messages, "response": "It is 2.\n\nIt is 4."}] * 3
    small_budget(2 * (len("Think.") + 2 * len(prm.TAG)))
    results = await score(engine, "process", items, system="Think.")
    assert codes(results) == [None, None, "sequence_too_long"]


async def test_a_long_step_tag_behind_many_steps_is_refused_before_it_is_written(
    make_engine: Callable[..., Any], small_budget: Callable[[int], None], tmp_path: Path
) -> None:
    small_budget(1_000_000)
    folder = prm.save(tmp_path, prm.with_tag(), "causal_lm")
    deployed = {"type": "process", "options": {"layout": "math_shepherd"}}
    engine = make_engine("causal_lm", [deployed], checkpoint=folder)
    item = {"prompt": prm.QUESTION, "response": "4\n" * 200}
    began = time.monotonic()
    (result,) = await score(engine, "process", [item], step_tag="#" * 10_000)
    assert result.error.code == "sequence_too_long"
    assert "send fewer items" in result.error.message
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("scorer", "options"),
    [
        ("treg", {"better": "a" * 20_001}),
        ("treg", {"better": "a" * 10_001, "worse": "b" * 10_000}),
        ("generative", {"template": "{{ response }}" + "a" * 20_000}),
        ("generative", {"system": "a" * 20_001}),
        ("generative", {"yes": ["y" * 250] * 81}),
        ("generative", {"chat_template_kwargs": {"a": [{"b" * 20_001: 1}]}}),
    ],
)
async def test_long_options_are_refused_with_the_limit_that_is_listed(
    make_engine: Callable[..., Any], scorer: str, options: dict[str, Any]
) -> None:
    engine = make_engine("causal_lm", [GENERATIVE, "treg"])
    items = [{"prompt": "2+2?", "response": RESPONSE}]
    with pytest.raises(InvalidField, match=r"limit is 20000 \(`max_option_characters`\)") as caught:
        await score(engine, scorer, items, **options)
    assert caught.value.param == "options"
    assert engine.describe()[0]["limits"]["max_option_characters"] == MAX_OPTION_CHARACTERS


async def test_prompts_under_an_instruction_are_tokenised_once_for_a_group_of_responses(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("causal_lm", ["treg"])
    texts: list[str] = []
    encoder = engine.tokenizer.encoder
    read = encoder.read
    monkeypatch.setattr(encoder, "read", lambda text: texts.append(text) or read(text))
    for prompt in ("2+2?", [{"role": "user", "content": "2+2?"}]):
        texts.clear()
        items = [{"prompt": prompt, "response": RESPONSE}] * 8
        results = await score(engine, "treg", items, better="Be good.")
        assert codes(results) == [None] * 8
        assert len([text for text in texts if "Be good." in text]) == 1
