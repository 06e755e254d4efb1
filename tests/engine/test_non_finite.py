"""Numbers that float32 cannot hold, or that a model did not give, are `non_finite` errors of their
item in every scorer: not zeros, not infinities, not a failure of the scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import tiny
from fakes.layouts import Intercepted
from tokenreward.wire import ItemResult, RewardsRequest, parse

ITEM = {"prompt": "2+2?", "response": "It is 4.\nYes.", "score": 1.0}
TOO_MUCH: list[tuple[str, dict[str, Any]]] = [
    ("endogenous", {"alpha": 1e300}),
    ("endogenous", {"alpha": 1e-38}),
    ("endogenous", {"form": "logprob", "temperature": 1e-320}),
    ("entropy", {"temperature": 1e-320}),
    ("treg", {"temperature": 1e-320}),
    ("implicit", {"beta": 1e300}),
    ("implicit", {"beta": 1.0, "token_clip": [1e300, 1e301]}),
    ("generative", {"mode": "graded", "values": [1e308] * 5}),
    ("constant", {"value": 1e300}),
]


async def ask(engine: Any, scorer: str, **more: Any) -> ItemResult:
    request = parse(RewardsRequest, {"scorer": scorer, "items": [ITEM], **more})
    return (await engine.score(request)).items[0]


@pytest.fixture
def pair(make_engine: Callable[..., Any], tmp_path: Path) -> Any:
    second = tiny.save(tmp_path / "second", seed=1)
    types = ["endogenous", "entropy", "treg", "implicit", "constant", "generation_attention"]
    return make_engine(
        "causal_lm",
        [*types, {"type": "generative", "options": {"mode": "graded"}}],
        reference_checkpoint=str(second),
    )


async def test_options_that_overflow_are_an_error_of_the_item(pair: Any) -> None:
    for scorer, options in TOO_MUCH:
        item = await ask(pair, scorer, options=options)
        assert item.rewards is None
        assert item.score is None
        assert item.error.code == "non_finite", (scorer, options)
    assert (await ask(pair, "implicit")).error is None


@pytest.mark.parametrize(
    ("task", "scorer"), [("reward_model", "attention_dense"), ("causal_lm", "generation_attention")]
)
async def test_attention_that_is_not_a_number_is_not_called_absent(
    make_engine: Callable[..., Any], task: str, scorer: str
) -> None:
    engine = make_engine(task, [scorer])
    run = engine.runner.layout.run

    def spoil(work: Any) -> Any:
        return [
            replace(
                outputs, attention={name: row * np.nan for name, row in outputs.attention.items()}
            )
            for outputs in run(work)
        ]

    Intercepted(engine, lambda requests, run: spoil(requests))
    assert (await ask(engine, scorer)).error.code == "non_finite"
