"""The scorer that CONTRIBUTING.md shows works as shown, from outside the package."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fakes.pages import code_blocks, page
from tokenreward.wire import RewardsRequest, parse

GUIDE = page("CONTRIBUTING.md")


async def test_the_example_scorer_gives_log_probs_above_its_floor(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = code_blocks(GUIDE, "python")
    module = types.ModuleType("their_margin")
    monkeypatch.setitem(sys.modules, "their_margin", module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)  # noqa: S102 - our own document
    engine = make_engine(
        "causal_lm", [{"type": "their_margin:Scorer", "name": "margin"}, "endogenous"]
    )
    items = [{"prompt": "2+2?", "response": "It is 4.", "mask": [1, 1, 0, 1, 1]}]
    ask = {"items": items, "scorers": ["margin", "endogenous"]}
    options = {"margin": {"floor": -3.0}, "endogenous": {"form": "logprob"}}
    reply = await engine.score(parse(RewardsRequest, {**ask, "options": options}))
    results = reply.items[0].scorers
    expected = np.where(items[0]["mask"], results["endogenous"].rewards + 3.0, 0.0)
    np.testing.assert_allclose(results["margin"].rewards, expected, atol=1e-5)
    assert results["margin"].score == pytest.approx(expected.sum(), abs=1e-4)
