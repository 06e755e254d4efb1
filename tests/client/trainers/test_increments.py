"""Levels and returns are refused before a trainer adds them up."""

from __future__ import annotations

from typing import Any

import pytest

from tokenreward.engine.plan import served_scorers
from tokenreward.settings import DeploymentSettings
from tokenreward_client import BadArgument, ScorerInfo
from tokenreward_client.trainers._increments import require_increments


def listing(*scorers: dict[str, Any], task: str = "reward_model") -> list[ScorerInfo]:
    """What the service lists of these scorers, by the engine's own words."""
    settings: Any = {"name": "d", "checkpoint": "c", "task": task, "scorers": list(scorers)}
    served = served_scorers(DeploymentSettings(**settings))
    return [ScorerInfo.model_validate(scorer.listing) for scorer in served.values()]


RM = listing({"type": "reward_model"}, {"type": "attention_dense"})
RED = listing({"type": "reward_model", "name": "rm", "options": {"red": True}})
VALUES = {"credit": {"name": "values"}}


@pytest.mark.parametrize(
    ("entries", "scorer", "settings"),
    [
        (RM, "reward_model", VALUES),
        (RM, "reward_model", {**VALUES, "options": {"red": False}}),
        (RED, "rm", {**VALUES, "options": {"red": False}}),
        (RM, None, {"scorers": ["a=reward_model"], "credit": {"a=reward_model": VALUES["credit"]}}),
    ],
)
def test_levels_are_refused_in_a_sentence_that_names_the_option_red(
    entries: Any, scorer: Any, settings: Any
) -> None:
    with pytest.raises(BadArgument, match=r"gives levels.*option `red`, or for another credit"):
        require_increments(entries, scorer, settings)


@pytest.mark.parametrize(
    ("entries", "scorer", "settings"),
    [
        (RM, "reward_model", {}),  # the score on the last token
        (RM, "reward_model", {"credit": {"name": "uniform"}}),
        (RM, "reward_model", {**VALUES, "options": {"red": True}}),
        (RED, "rm", VALUES),  # the operator's default
        (RM, "attention_dense", {}),
        (RM, None, {"scorers": ["reward_model", "attention_dense"]}),
        (listing({"type": "endogenous"}, task="causal_lm"), None, {}),
    ],
)
def test_increments_and_credits_pass(entries: Any, scorer: Any, settings: Any) -> None:
    require_increments(entries, scorer, settings)


def test_returns_are_refused() -> None:
    with pytest.raises(BadArgument, match="gives returns"):
        require_increments(RM, "reward_model", {"credit": {"name": "discount"}})


def test_a_scorer_that_is_not_listed_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadArgument, match="no scorer `rm`, it lists attention_dense, reward_model"):
        require_increments(RM, "rm", {})
