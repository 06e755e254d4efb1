"""Scorers that compare the logits of a few tokens read those logits, and no logsumexp over the
vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fakes import oracle, prm, tiny
from fakes.samples import watch_needs
from tokenreward.contract import Needs
from tokenreward.wire import RewardsRequest, parse

VERIFIER = {"template": "{{ prompt }}|{{ response }}"}
STEPS = ["It is 2.", "and so on;", "the answer is 4"]


def ids_of(text: str) -> list[int]:
    return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]


@pytest.fixture
def verifier_logits(language_model: Path) -> np.ndarray:
    """Float64 logits [vocabulary] after the verifier's prompt."""
    exact = oracle.double(AutoModelForCausalLM.from_pretrained(language_model))
    turn = "<|user|>2+2?|It is 4.<|end|>\n<|assistant|>"
    return oracle.logits(exact, np.array(ids_of(turn)))[-1]


def grade(z: np.ndarray) -> float:
    """The mean of 1 to 5 under the softmax over their tokens."""
    labels = z[[ids_of(digit)[0] for digit in "12345"]]
    return float(np.exp(labels - oracle.logsumexp(labels)) @ np.arange(1, 6))


@pytest.mark.parametrize(
    ("options", "labels", "truth"),
    [
        (
            {"mode": "yes_minus_no", "yes": ["Y"], "no": ["N"]},
            "YN",
            lambda z: z[ids_of("Y")[0]] - z[ids_of("N")[0]],
        ),
        ({"mode": "graded"}, "12345", grade),
    ],
    ids=["yes_minus_no", "graded"],
)
async def test_a_verifier_that_compares_labels_reads_their_logits_alone(
    make_engine: Callable[..., Any],
    verifier_logits: np.ndarray,
    options: dict[str, Any],
    labels: str,
    truth: Callable[[np.ndarray], float],
) -> None:
    engine = make_engine("causal_lm", [{"type": "generative", "options": options}])
    needs_log = watch_needs(engine)
    item = {"prompt": "2+2?", "response": "It is 4."}
    request = {"scorer": "generative", "items": [item], "options": VERIFIER}
    (result,) = (await engine.score(parse(RewardsRequest, request))).items
    assert needs_log == [Needs(labels=frozenset(ids_of(label)[0] for label in labels))]
    assert result.score == pytest.approx(truth(verifier_logits), abs=1e-4)


async def test_a_verifier_that_normalises_over_the_vocabulary_reads_one_logsumexp(
    make_engine: Callable[..., Any], verifier_logits: np.ndarray
) -> None:
    engine = make_engine("causal_lm", [{"type": "generative", "options": {"yes": ["Y"]}}])
    needs_log = watch_needs(engine)
    item = {"prompt": "2+2?", "response": "It is 4."}
    request = {"scorer": "generative", "items": [item], "options": VERIFIER}
    (result,) = (await engine.score(parse(RewardsRequest, request))).items
    yes = ids_of("Y")[0]
    assert needs_log == [Needs(temperatures=frozenset({1.0}), labels=frozenset({yes}))]
    truth = verifier_logits[yes] - oracle.logsumexp(verifier_logits)
    assert result.score == pytest.approx(truth, abs=1e-4)


async def test_math_shepherd_reads_the_logits_of_its_two_answers_alone(
    make_engine: Callable[..., Any], tmp_path: Path
) -> None:
    folder = prm.save(tmp_path, prm.with_tag(), "causal_lm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"layout": "math_shepherd"}
    engine = make_engine("causal_lm", [{"type": "process", "options": options}], checkpoint=folder)
    needs_log = watch_needs(engine)
    item = {"prompt": prm.QUESTION, "response": "\n".join(STEPS)}
    request = {"scorer": "process", "items": [item]}
    (result,) = (await engine.score(parse(RewardsRequest, request))).items
    good, bad = (tokenizer.encode(mark)[-1] for mark in "+-")
    assert needs_log == [Needs(labels=frozenset({good, bad}))]
    ids, places = prm.math_shepherd(tokenizer, STEPS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    truth = prm.plus_over_minus(model, ids, [good, bad])[places]
    np.testing.assert_allclose(result.step_scores, truth, atol=1e-5)
    assert np.ptp(truth) > 0.01
