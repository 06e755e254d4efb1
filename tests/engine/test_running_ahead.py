"""A device that runs ahead is asked for the next batch before the answer of this one is waited for:
a GPU, or several that share a model, here played by the real layout on the CPU. Same numbers, same
care for whoever fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fakes.web import until
from tokenreward import errors
from tokenreward.checkpoints.placement import Placement
from tokenreward.engine import Engine
from tokenreward.forward.transfer import Pending
from tokenreward.wire import RewardsRequest, parse

POISON = 77


def request(*responses: list[int]) -> RewardsRequest:
    return parse(
        RewardsRequest,
        {
            "scorer": "endogenous",
            "items": [{"prompt": [5], "response": each} for each in responses],
        },
    )


class Watched:
    """The real layout, with a diary of first tokens of responses, and a fault in the way of asking
    or of fetching."""

    def __init__(self, layout: Any) -> None:
        self._layout = layout
        self.diary: list[tuple[str, int]] = []
        self.faults: dict[str, Callable[[set[int]], object]] = {}

    def launch(self, work: Any) -> Pending[Any]:
        self._note("ask", work)
        return Pending(partial(self._fetch, self._layout.launch(work), work))

    def _fetch(self, pending: Pending[Any], work: Any) -> Any:
        self._note("fetch", work)
        return pending.result()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)

    def _note(self, what: str, work: Any) -> None:
        self.diary.append((what, int(work[0][0].ids[1])))
        self.faults.get(what, lambda ids: None)(
            {int(token) for row, _ in work for token in row.ids}
        )


@pytest.fixture
def ahead(make_engine: Callable[..., Any]) -> Callable[..., tuple[Any, Watched]]:
    def make(num_ahead: int = 1, **settings: Any) -> tuple[Any, Watched]:
        engine = make_engine("causal_lm", ["endogenous"], **settings)
        watched = engine.runner.layout = Watched(engine.runner.layout)
        engine.runner.num_ahead = num_ahead
        return engine, watched

    return make


def raises(error: Exception, ids: set[int]) -> None:
    if POISON in ids:
        raise error


async def test_the_next_batch_is_asked_for_before_this_ones_answer_and_no_other(ahead: Any) -> None:
    engine, watched = ahead(max_batch_requests=1)
    watched.faults["ask"] = lambda ids: (
        time.sleep(0.3) if 10 in ids else None
    )  # the others queue meanwhile
    await asyncio.gather(*(engine.score(request([10 + i])) for i in range(4)))
    assert [kind for kind, _ in watched.diary] == [
        "ask",
        "ask",
        "fetch",
        "ask",
        "fetch",
        "ask",
        "fetch",
        "fetch",
    ]
    asked, fetched = (
        [token for kind, token in watched.diary if kind == each] for each in ("ask", "fetch")
    )
    assert asked == fetched == [10, 11, 12, 13]


@pytest.mark.parametrize("num_ahead", [1, 3])
async def test_rewards_are_those_of_a_device_that_does_not(
    ahead: Any, make_engine: Callable[..., Any], num_ahead: int
) -> None:
    engine, _ = ahead(num_ahead, max_batch_requests=2)
    plain = make_engine("causal_lm", ["endogenous"], max_batch_requests=2)
    requests = [request([10 + i, 20 + i, 30 + i]) for i in range(7)]
    ours = await asyncio.gather(*map(engine.score, requests))
    theirs = await asyncio.gather(*map(plain.score, requests))
    for mine, its in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.items[0].rewards, its.items[0].rewards, atol=1e-5)


@pytest.mark.parametrize("num_ahead", [1, 3])
@pytest.mark.parametrize("where", ["ask", "fetch"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("shape mismatch"), "scorer_failed"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    ],
)
async def test_only_the_culprit_fails(
    ahead: Any, where: str, error: Exception, code: str, num_ahead: int
) -> None:
    engine, watched = ahead(num_ahead, max_batch_requests=3)
    watched.faults[where] = partial(raises, error)
    replies = await asyncio.gather(
        *(engine.score(request([token], [50])) for token in (10, 11, POISON, 12, 13))
    )
    found = [item.error and item.error.code for reply in replies for item in reply.items]
    assert found == [None, None, None, None, code, None, None, None, None, None]


@pytest.mark.parametrize("num_ahead", [1, 3])
@pytest.mark.parametrize("where", ["ask", "fetch"])
async def test_a_lost_device_fails_everybody_in_flight(
    ahead: Any, where: str, num_ahead: int
) -> None:
    engine, watched = ahead(num_ahead, max_batch_requests=1)
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    met: set[int] = set()  # what is launched or fetched after the loss fails, too

    def lose(ids: set[int]) -> None:
        met.update(ids)
        raises(lost, met)

    watched.faults[where] = lose
    requests = [request([token]) for token in (POISON, 10, 11, 12, 13)]
    async with asyncio.timeout(10):
        ends = await asyncio.gather(*map(engine.score, requests), return_exceptions=True)
    assert [str(end)[:18] for end in ends if isinstance(end, errors.InternalError)] == [
        "the device is lost"
    ] * len(requests)
    with pytest.raises(errors.InternalError):
        engine.check_health()


@pytest.mark.parametrize("num_ahead", [1, 3])
async def test_whoever_is_in_a_batch_is_answered_when_the_engine_closes(
    ahead: Any, num_ahead: int
) -> None:
    engine, watched = ahead(num_ahead, max_batch_requests=1)
    watched.faults = {"ask": lambda ids: time.sleep(0.2), "fetch": lambda ids: time.sleep(1.0)}
    waiting = [asyncio.create_task(engine.score(request([10 + i]))) for i in range(num_ahead + 2)]
    await until(lambda: ("fetch", 10) in watched.diary)
    assert ("ask", 10 + num_ahead) in watched.diary
    await engine.close()
    ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=10)
    assert all(isinstance(end, errors.InternalError) for end in ends)


async def test_a_model_over_gpus_gets_as_many_batches_ahead_as_it_has_gpus(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    assert engine.runner.num_ahead == 0
    gpus = tuple(torch.device("cuda", index) for index in range(3))
    for num in (1, 3):
        placement = Placement(gpus[:num], (0, 1, 2)[:num])
        checkpoint = replace(engine.checkpoint, placement=placement)
        layout, report = engine.runner.layout, lambda *args, **labels: None
        of_gpus = Engine(engine.settings, checkpoint, layout, report, engine.tokenizer)
        assert of_gpus.runner.num_ahead == num
        await of_gpus.close()


async def test_time_is_counted_once(make_engine: Callable[..., Any]) -> None:
    """What the next batch waits for this one is not its own."""
    computed: list[float] = []
    report = lambda name, value=1.0, **labels: (  # noqa: E731
        computed.append(value) if name == "compute_seconds" else None
    )
    engine = make_engine("causal_lm", ["endogenous"], max_batch_requests=1, report=report)
    watched = engine.runner.layout = Watched(engine.runner.layout)
    engine.runner.num_ahead = 1
    watched.faults["fetch"] = lambda ids: time.sleep(0.2)
    began = time.monotonic()
    await asyncio.gather(*(engine.score(request([10 + i])) for i in range(4)))
    assert len(computed) == 4
    assert min(computed) >= 0.2
    assert sum(computed) <= time.monotonic() - began
