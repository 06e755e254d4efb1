"""A device without memory for all rows of an item reads them one at a time, and its figures are
made on its thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tokenreward.wire import RewardsRequest, parse

TREG = {"type": "treg", "options": {"better": "Good.", "worse": "Bad and worse."}}


class Small:
    """The real layout on a device that has memory for so many rows at a time."""

    def __init__(self, engine: Any, num_rows: int) -> None:
        self._layout, self._num_rows = engine.runner.layout, num_rows
        self.passes: list[int] = []
        engine.runner.layout = self

    def run(self, work: Any) -> Any:
        self.passes.append(len(work))
        if len(work) > self._num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._layout.run(work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)


async def ask(engine: Any, *prompts: str, scorer: str = "treg") -> list[dict[str, Any]]:
    items = [{"prompt": prompt, "response": [10, 11, 12]} for prompt in prompts]
    return list(
        (await engine.score(parse(RewardsRequest, {"scorer": scorer, "items": items}))).items
    )


async def test_an_item_whose_rows_do_not_fit_in_one_pass_is_read_row_by_row(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [TREG])
    expected = await ask(engine, "2+2?", "3+3?")
    layout = Small(engine, num_rows=1)
    items = await ask(engine, "2+2?", "3+3?")
    assert layout.passes == [4, 2, 1, 1, 2, 1, 1]
    for item, other in zip(items, expected, strict=True):
        assert item.error is None
        np.testing.assert_allclose(item.rewards, other.rewards, rtol=0, atol=1e-5)


async def test_an_item_of_which_one_row_does_not_fit_alone_is_out_of_memory(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", [TREG])
    layout = Small(engine, num_rows=0)
    (item,) = await ask(engine, "2+2?")
    assert item.error.code == "out_of_memory"
    assert layout.passes == [2, 1]


async def test_what_a_pass_computed_is_counted_on_the_devices_thread(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: dict[str, float] = {}
    report = lambda name, value=1.0, **labels: reported.update({name: value})  # noqa: E731
    engine = make_engine("causal_lm", ["endogenous"], report=report)
    threads, count = [], engine.runner.layout.num_computed

    def counted(rows: Any) -> int:
        threads.append(threading.current_thread())
        return int(count(rows))

    monkeypatch.setattr(engine.runner.layout, "num_computed", counted)
    await ask(engine, "2+2?", scorer="endogenous")
    assert threads
    assert threading.current_thread() not in threads
    assert reported["computed_tokens_total"] == reported["batch_tokens"] > 3
