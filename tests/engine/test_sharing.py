"""A pass's budget counts a prompt that items have in common once where the layout computes it once,
and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny
from fakes.layouts import Intercepted
from tokenreward.forward.kernels import attend_alone
from tokenreward.wire import RewardsRequest, parse

NUM_PROMPT, NUM_RESPONSE, NUM_ITEMS, BUDGET = 40, 2, 6, 60


def computed_by_pass(engine: Any) -> list[int]:
    """Filled as passes run: the tokens that each computed."""
    layout, passes = engine.runner.layout, []

    def run(work: Any) -> Any:
        passes.append(layout.num_computed([row for row, _ in work]))
        return layout.run(work)

    Intercepted(engine, lambda requests, _: run(requests))
    return passes


async def score_a_group(engine: Any, scorer: str) -> None:
    prompt = list(range(3, 3 + NUM_PROMPT))
    items = [{"prompt": prompt, "response": [50 + i, 60]} for i in range(NUM_ITEMS)]
    reply = await engine.score(parse(RewardsRequest, {"scorer": scorer, "items": items}))
    assert [item.error for item in reply.items] == [None] * NUM_ITEMS


async def test_a_layout_that_shares_prompts_takes_a_group_in_one_pass(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_batch_tokens=BUDGET)
    passes = computed_by_pass(engine)
    await score_a_group(engine, "endogenous")
    assert passes == [NUM_PROMPT + NUM_ITEMS * NUM_RESPONSE]


@pytest.mark.parametrize("because", ["padded", "kernel"])
async def test_a_layout_that_shares_none_computes_no_more_in_a_pass_than_the_budget(
    make_engine: Callable[..., Any], tmp_path: Path, because: str
) -> None:
    checkpoint = tiny.save(tmp_path, "bloom" if because == "padded" else "llama")
    engine = make_engine(
        "causal_lm", ["endogenous"], max_batch_tokens=BUDGET, checkpoint=checkpoint
    )
    if because == "kernel":
        layout = engine.runner.layout
        layout.kernel, layout.shares = attend_alone, False
    passes = computed_by_pass(engine)
    await score_a_group(engine, "endogenous")
    assert passes == [NUM_PROMPT + NUM_RESPONSE] * NUM_ITEMS


async def test_padding_is_reported_and_nothing_is_shared(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    totals: dict[str, float] = {}
    engine = make_engine(
        "causal_lm",
        ["endogenous"],
        checkpoint=tiny.save(tmp_path, "bloom"),
        report=lambda name, value=1.0, **_: totals.update({name: value}),
    )
    items = [{"prompt": [5, 6], "response": [7] * size} for size in (3, 8)]
    await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items}))
    assert totals["computed_tokens_total"] == 2 * (2 + 8)
    assert totals["padding_tokens_total"] == 8 - 3
    assert totals["shared_tokens_total"] == 0


async def test_a_pair_of_which_one_shares_none_keeps_to_the_budget_too(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    reference = str(tiny.save(tmp_path, "bloom"))
    engine = make_engine(
        "causal_lm", ["implicit"], max_batch_tokens=2 * BUDGET, reference_checkpoint=reference
    )
    passes = computed_by_pass(engine)
    await score_a_group(engine, "implicit")
    assert passes == [2 * (NUM_PROMPT + NUM_RESPONSE)] * NUM_ITEMS


async def test_one_scorer_under_several_labels_is_one_pass_and_each_label_has_its_own_options(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    passes = computed_by_pass(engine)
    items = [{"prompt": [5, 6, 7], "response": [8, 9, 10]}]
    options = {
        "sum=endogenous": {},
        "mean=endogenous": {"aggregation": "mean"},
        "endogenous": {"form": "logprob"},
    }
    body = {"scorers": list(options), "options": options, "items": items}
    reply = await engine.score(parse(RewardsRequest, body))
    assert passes == [6]
    results = reply.items[0].scorers
    assert list(results) == list(options)
    for name, result in results.items():
        alone = {"scorer": "endogenous", "options": options[name], "items": items}
        (item,) = (await engine.score(parse(RewardsRequest, alone))).items
        assert result.score == pytest.approx(item.score, abs=1e-5)
    assert results["mean=endogenous"].score == pytest.approx(results["sum=endogenous"].score / 3)
