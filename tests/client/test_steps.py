"""Reasoning steps in a reply: kept where the scorer gives them, refused where they contradict the
rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes.edge import keyed
from tokenreward_client import BadReply

STEPS = {"step_scores": [0.9, 0.25, 0.5], "step_ids": [0, 2]}


def test_steps_come_as_arrays_beside_the_rewards(edge: Any, score: Any, items: Any) -> None:
    edge.script.append(edge.changed(1, **STEPS))
    without, answer = score(items(2))
    assert (without.step_scores, without.step_ids) == (None, None)
    assert answer.step_scores.dtype == np.float32
    np.testing.assert_array_equal(answer.step_scores, np.array([0.9, 0.25, 0.5], dtype=np.float32))
    assert answer.step_ids.tolist() == [0, 2]
    assert answer.rewards.tolist() == [1, 1]


def test_steps_of_one_of_several_scorers_are_its_own(edge: Any, score: Any, items: Any) -> None:
    result = {"rewards": [1.0, 2.0], "score": 1.0}
    edge.script.append(lambda body: edge.reply([keyed(0, a=result | STEPS, b=result)]))
    [answer] = score(items(1), scorers=["a", "b"])
    assert answer.step_scores is None
    assert answer.scorers["a"].step_ids.tolist() == [0, 2]
    assert answer.scorers["b"].step_scores is None


def test_further_scores_come_by_name_and_must_be_finite(edge: Any, score: Any, items: Any) -> None:
    labels = {"helpful": 0.5, "brief": -2.0}
    edge.script.append(edge.changed(1, scores=labels))
    without, answer = score(items(2))
    assert (without.scores, answer.scores) == (None, labels)
    edge.script.append(edge.changed(0, scores={"helpful": 1e999}))
    with pytest.raises(BadReply, match=r"not finite|Infinity|inf"):
        score(items(1))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"step_scores": [0.5]}, "only one of step_scores and step_ids"),
        ({"step_ids": [0, 0]}, "only one of step_scores and step_ids"),
        (STEPS | {"step_ids": [0]}, "step_ids has 1 entries for 2 rewards"),
        (STEPS | {"step_ids": [0, 3]}, "do not ascend from 0 to below 3"),
        (STEPS | {"step_ids": [2, 1]}, "do not ascend"),
        (STEPS | {"step_ids": [-1, 1]}, "do not ascend"),
        (STEPS | {"step_scores": []}, "do not ascend"),
        (
            STEPS | {"step_scores": [0.5, 1e39, 0.5]},
            "step_scores has 1 entries that are not finite",
        ),
    ],
)
def test_steps_that_contradict_the_rewards_are_an_exception(
    edge: Any, score: Any, items: Any, steps: dict[str, Any], message: str
) -> None:
    edge.script.append(edge.changed(0, **steps))
    with pytest.raises(BadReply, match=message):
        score(items(1))
