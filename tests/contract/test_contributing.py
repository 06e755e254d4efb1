"""The scorer that CONTRIBUTING.md shows works as shown, from outside the package; and what the
guide says of other scorers is there."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fakes.guide import GUIDE, GUIDE_TYPE
from tokenreward import contract
from tokenreward.scorers import known_types, resolve
from tokenreward.wire import RewardsRequest, parse

TABLE = GUIDE.partition("| it wants | it says | as in |")[2].partition("\n\n")[0]


async def test_the_example_scorer_gives_log_probs_above_its_floor(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [{"type": GUIDE_TYPE, "name": "margin"}, "endogenous"])
    items = [{"prompt": "2+2?", "response": "It is 4.", "mask": [1, 1, 0, 1, 1]}]
    request = {"items": items, "scorers": ["margin", "endogenous"]}
    options = {"margin": {"floor": -3.0}, "endogenous": {"form": "logprob"}}
    reply = await engine.score(parse(RewardsRequest, {**request, "options": options}))
    results = reply.items[0].scorers
    expected = np.where(items[0]["mask"], results["endogenous"].rewards + 3.0, 0.0)
    np.testing.assert_allclose(results["margin"].rewards, expected, atol=1e-5)
    assert results["margin"].score == pytest.approx(expected.sum(), abs=1e-4)


def test_every_method_and_attribute_of_the_table_is_the_contracts() -> None:
    for name, arguments in re.findall(r"`(\w+)\(([\w, ]+)\)`", TABLE):
        parameters = list(inspect.signature(getattr(contract.Scorer, name)).parameters)
        assert arguments.split(", ") == parameters[1:], name
    for name in re.findall(r"`(\w+) = ", TABLE):
        assert hasattr(contract.Scorer, name) or name in contract.Scorer.__annotations__, name
    for name in re.findall(r"`sample\.(\w+)", TABLE):
        assert hasattr(contract.Sample, name), name


def test_the_table_names_every_part_of_a_scorer_that_has_a_default() -> None:
    defaults = {
        name
        for name, value in vars(contract.Scorer).items()
        if not name.startswith("_") and not getattr(value, "__isabstractmethod__", False)
    }
    assert {name for name in defaults if f"`{name}" not in TABLE} == set()


def test_each_example_of_the_table_uses_what_it_is_an_example_of() -> None:
    rows = [line.split("|")[1:4] for line in TABLE.splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for _, says, example in rows:
        for name in re.findall(r"`(\w+)`", example):
            assert name in known_types()
            source = inspect.getsource(inspect.getmodule(type(resolve(name))))
            for word in re.findall(r"`(\w+)(?:\(| = )", says):
                assert word in source, f"{name} is no example of {word}"
