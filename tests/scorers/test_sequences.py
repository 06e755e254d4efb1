"""Sequences whose tokens are all scored (`whole: sequence`): which scorers read them, and which put
prompt and response into texts of their own and refuse them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fakes import tiny
from tokenreward.wire import RewardsRequest, parse

TEXT = "<|user|>2+2?<|end|>\n<|assistant|>It is 4."
IDS = tiny.tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
PARTS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "response": "It is 4."},
    {"prompt": "", "response": TEXT, "whole": "conversation"},
]
SEQUENCES: list[dict[str, Any]] = [
    {"prompt": "", "response": "Hello there 4", "whole": "sequence"},
    {"prompt": "What is 2+2? ", "response": "It is 4", "whole": "sequence"},
    {"prompt": [], "response": IDS, "whole": "sequence"},
    {"prompt": IDS[:3], "response": IDS[3:], "whole": "sequence"},
    {"prompt": [{"role": "user", "content": "2+2?"}], "response": "4", "whole": "sequence"},
]
OTHER = {"causal_lm": "logprob", "reward_model": "reward_model"}
QUOTING = {"yes": ["Y"], "no": ["N"]}


@pytest.mark.parametrize(
    ("task", "type_", "options"),
    [
        ("causal_lm", "treg", {}),
        ("causal_lm", "generative", QUOTING),
        ("causal_lm", "generative", {"mode": "logit", "template": "{{ response }}"}),
        ("causal_lm", "process", {"layout": "math_shepherd"}),
        ("causal_lm", "process", {"layout": "turns"}),
        ("reward_model", "process", {"layout": "skywork"}),
        ("reward_model", "process", {"step_tag": "\n"}),
    ],
)
async def test_a_scorer_that_writes_its_own_text_refuses_sequences_by_name_and_nothing_else_is_lost(
    make_engine: Callable[..., Any], task: str, type_: str, options: dict[str, Any]
) -> None:
    defaults = QUOTING if type_ == "generative" else options
    engine = make_engine(task, [{"type": type_, "options": defaults}, OTHER[task]])

    async def ask(items: list[dict[str, Any]]) -> list[Any]:
        body = {
            "scorers": [type_, OTHER[task]],
            "options": {type_: options},
            "credit": {OTHER[task]: {"name": "values"}},
            "items": items,
        }
        return (await engine.score(parse(RewardsRequest, body))).items

    alone, results = await ask(PARTS), await ask([*SEQUENCES, *PARTS])
    await engine.close()
    for index, result in enumerate(results[: len(SEQUENCES)]):
        refused, other = result.scorers[type_], result.scorers[OTHER[task]]
        assert refused.rewards is None
        assert (refused.error.code, refused.error.param, refused.error.retryable) == (
            "unsupported_text",
            f"items[{index}].whole",
            False,
        )
        assert "`whole: sequence`" in refused.error.message
        assert "`whole: conversation`" in refused.error.message
        assert other.error is None
        assert np.isfinite(other.rewards).all()
    for result, expected in zip(results[len(SEQUENCES) :], alone, strict=True):
        for name in (type_, OTHER[task]):
            np.testing.assert_allclose(
                result.scorers[name].rewards, expected.scorers[name].rewards, atol=1e-5
            )


async def test_a_logit_behind_the_conversation_is_that_of_the_same_tokens_in_two_parts(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [{"type": "generative", "options": QUOTING}])
    items = [*SEQUENCES[2:4], {"prompt": IDS[:3], "response": IDS[3:]}]
    body = {"scorer": "generative", "items": items, "options": {"mode": "logit"}}
    scores = [item.score for item in (await engine.score(parse(RewardsRequest, body))).items]
    await engine.close()
    assert scores == pytest.approx([scores[-1]] * 3, abs=1e-5)


async def test_attention_spreads_a_score_over_a_sequence_as_over_the_tokens_behind_its_first(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["generation_attention"])
    items = [{**SEQUENCES[2], "score": 1.0}, {"prompt": IDS[:1], "response": IDS[1:], "score": 1.0}]
    body = {"scorer": "generation_attention", "items": items}
    whole, parts = (await engine.score(parse(RewardsRequest, body))).items
    await engine.close()
    np.testing.assert_allclose(whole.rewards, parts.rewards, atol=1e-6)
