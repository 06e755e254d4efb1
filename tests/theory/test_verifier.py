"""A generative verifier is the endogenous reward with a horizon of one (2506.23235): its one action
is the token Yes.

r(s_1, Yes) = alpha * log pi(Yes | s_1) + V(s_1), the raw logit of Yes. The response is inside s_1,
so V(s_1) does not cancel between two of them, and the verifier leaves it out. Both scorers of one
real model, through one engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fakes import tiny
from tokenreward.wire import RewardsRequest, parse

TEMPLATE = "{{ prompt }} | {{ response }} | {{ yes }} or {{ no }}?"
RESPONSES = [
    "It is 4.",
    "It is 5.",
    "No doubt.",
    "a",
    "Köln",
    "東京",
    "2+2",
    "Yes, yes",
    *map(str, range(20)),
]
SCORERS = [
    "endogenous",
    {"type": "generative", "options": {"template": TEMPLATE, "yes": ["Y"], "no": ["N"]}},
]


def token(text: str) -> int:
    (only,) = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
    return int(only)


async def verdicts(engine: Any, mode: str) -> np.ndarray:
    items = [{"prompt": "2+2?", "response": response} for response in RESPONSES]
    body = {"scorer": "generative", "items": items, "options": {"mode": mode}}
    return np.array(
        [item.score for item in (await engine.score(parse(RewardsRequest, body))).items]
    )


async def endogenous(engine: Any, action: str, **options: Any) -> np.ndarray:
    """The reward of that single action in the state that the verifier is asked in."""
    messages = [
        {"role": "user", "content": f"2+2? | {response} | Y or N?"} for response in RESPONSES
    ]
    items = [{"prompt": [message], "response": [token(action)]} for message in messages]
    body = {"scorer": "endogenous", "items": items, "options": options}
    return np.array(
        [item.score for item in (await engine.score(parse(RewardsRequest, body))).items]
    )


@pytest.fixture
def engine(make_engine: Callable[..., Any]) -> Any:
    return make_engine("causal_lm", SCORERS)


async def test_the_verifiers_score_is_the_endogenous_reward_of_yes_less_the_value(
    engine: Any,
) -> None:
    reward = await endogenous(engine, "Y", terminal="zero")
    value = reward - await endogenous(engine, "Y", form="logprob")
    np.testing.assert_allclose(await verdicts(engine, "yes"), reward - value, atol=1e-4)
    assert np.ptp(value) > 0.1  # V(s_1) is of the response, not of the prompt alone


@pytest.mark.parametrize("alpha", [0.5, 2.0])
async def test_with_one_action_the_endogenous_reward_is_its_logit_for_every_alpha(
    engine: Any, alpha: float
) -> None:
    plain = await endogenous(engine, "Y", terminal="zero")
    np.testing.assert_allclose(
        await endogenous(engine, "Y", alpha=alpha, terminal="zero"), plain, atol=1e-4
    )


async def test_the_value_changes_the_ranking_of_responses(engine: Any) -> None:
    with_value, without = (
        await endogenous(engine, "Y", terminal="zero"),
        await verdicts(engine, "yes"),
    )
    reversed_pairs = (np.subtract.outer(with_value, with_value) > 0.01) & (
        np.subtract.outer(without, without) < -0.01
    )
    assert reversed_pairs.any()


async def test_between_yes_and_no_the_value_cancels(engine: Any) -> None:
    yes, no = (
        await endogenous(engine, "Y", terminal="zero"),
        await endogenous(engine, "N", terminal="zero"),
    )
    np.testing.assert_allclose(await verdicts(engine, "yes_minus_no"), yes - no, atol=1e-4)
