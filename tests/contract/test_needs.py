"""Needs that no model can serve are refused where they are made, and a scorer that has them is
refused at load."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from tokenreward.contract import Needs
from tokenreward.scorers.entropy import Scorer as Entropy
from tokenreward.wire import RewardsRequest, parse

AT_ONE = frozenset({1.0})
AT_TWO = frozenset({2.0})
LABELS = frozenset({5, 6})


@pytest.mark.parametrize("temperatures", [frozenset(), AT_TWO])
def test_an_entropy_without_its_temperature_is_refused(temperatures: frozenset[float]) -> None:
    with pytest.raises(ValueError, match=r"entropies at \[1.0\] need the same `temperatures`"):
        Needs(temperatures=temperatures, entropies=AT_ONE)


@pytest.mark.parametrize("logits", [{"temperatures": AT_ONE}, {"labels": LABELS}])
@pytest.mark.parametrize("values", [{"values": True}, {"pooled": True}])
def test_logits_and_a_value_head_are_refused_together(logits: Any, values: Any) -> None:
    with pytest.raises(ValueError, match="no checkpoint has both"):
        Needs(**logits, **values)
    with pytest.raises(ValueError, match="no checkpoint has both"):
        Needs(**logits) | Needs(**values)


def test_joined_needs_have_everything_of_both() -> None:
    first = Needs(temperatures=AT_ONE, entropies=AT_ONE, attention=frozenset({"last"}))
    second = Needs(temperatures=AT_TWO, labels=LABELS, attention=frozenset({"mean_step"}))
    assert first | second == Needs(
        temperatures=AT_ONE | AT_TWO,
        entropies=AT_ONE,
        labels=LABELS,
        attention=frozenset({"last", "mean_step"}),
    )
    assert Needs(values=True) | Needs(pooled=True) == Needs(values=True, pooled=True)


@pytest.mark.parametrize(
    ("needs", "task"),
    [
        (Needs(), None),
        (Needs(attention=frozenset({"last"})), None),
        (Needs(labels=LABELS), "causal_lm"),
        (Needs(temperatures=AT_ONE), "causal_lm"),
        (Needs(values=True), "reward_model"),
        (Needs(pooled=True, attention=frozenset({"last"})), "reward_model"),
    ],
)
def test_needs_know_the_kind_of_checkpoint_that_has_them(needs: Needs, task: str | None) -> None:
    assert needs.task == task
    assert needs.reads_logits == (task == "causal_lm")


class Scorer(Entropy):
    """As `entropy`, but it forgets that an entropy needs its temperature."""

    class Options(Entropy.Options):
        pass

    def needs(self, options: Options) -> Needs:
        if options.temperature == 1.0 and not self.forgets_at_load:
            return super().needs(options)
        return Needs(entropies=frozenset({options.temperature}))

    forgets_at_load = True


class ForgetsLater(Scorer):
    """Only at temperatures that a request chooses."""

    forgets_at_load = False


@pytest.fixture(autouse=True)
def their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_entropy")
    module.__dict__.update(Scorer=Scorer, ForgetsLater=ForgetsLater)
    monkeypatch.setitem(sys.modules, "their_entropy", module)


def test_a_scorer_whose_needs_cannot_be_served_is_refused_at_load(
    make_engine: Callable[..., Any],
) -> None:
    with pytest.raises(ValueError, match="need the same `temperatures`"):
        make_engine("causal_lm", [{"type": "their_entropy:Scorer", "name": "theirs"}])


async def test_a_scorer_that_cannot_be_served_under_a_requests_options_fails_alone(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine(
        "causal_lm", [{"type": "their_entropy:ForgetsLater", "name": "theirs"}, "entropy"]
    )
    request = {"scorers": ["theirs", "entropy"], "items": [{"prompt": [5], "response": [6, 7]}]}
    (item,) = (await engine.score(parse(RewardsRequest, request))).items
    assert item.scorers["theirs"].rewards.tolist() == item.scorers["entropy"].rewards.tolist()
    options = {"theirs": {"temperature": 2.0}}
    request = parse(RewardsRequest, {**request, "options": options})
    (item,) = (await engine.score(request)).items
    assert item.scorers["theirs"].error.code == "scorer_failed"
    assert item.scorers["entropy"].error is None
