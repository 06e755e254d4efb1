"""The probe of weights that were pushed: between batches, of the newest weights, and loud."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import trained
from fakes.layouts import Intercepted
from fakes.web import until
from tokenreward.forward.layout import Gap
from tokenreward.wire import RewardsRequest, parse
from tokenreward.wire.weights import Weights

MakeEngine = Callable[..., Any]


@pytest.fixture(scope="module")
def new(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.further(language_model, tmp_path_factory.mktemp("new") / "weights")


async def push(engine: Any, folder: Path, version: int = 2) -> None:
    await engine.prepare(Weights(checkpoint=str(folder), version=version))
    await engine.commit(version)


def listed(engine: Any) -> tuple[float | None, str | None]:
    entry = engine.describe()[0]
    return entry["probe_difference"], entry["probe_note"]


async def test_a_layout_that_is_wrong_with_the_new_weights_is_an_error_in_log_and_listing(
    make_engine: MakeEngine, new: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    layout = engine.runner.layout
    real = layout.run

    def run(requests: Any) -> Any:
        return [
            replace(outputs, lse={t: lse + 0.25 for t, lse in outputs.lse.items()})
            for outputs in real(requests)
        ]

    layout.run = run
    await push(engine, new)
    await until(lambda: listed(engine)[0] is not None)
    difference, note = listed(engine)
    assert difference == pytest.approx(0.25, rel=1e-3)
    assert note is not None
    assert note.startswith("more than rounding explains: logits by 2.5e-01 (bound ")
    await until(lambda: bool(caplog.records))
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "version 2 is probed" in record.getMessage()
    assert "logits by 2.5e-01" in record.getMessage()
    # Good weights end the alarm.
    layout.run = real
    await push(engine, Path(engine.declared.checkpoint), 3)
    await until(lambda: listed(engine)[0] is not None)
    assert listed(engine)[1] is None
    await engine.close()


async def test_batches_run_between_the_parts_of_a_probe(make_engine: MakeEngine, new: Path) -> None:
    engine = make_engine("causal_lm", ["logprob"], max_batch_requests=1)
    events: list[str] = []

    def run(requests: Any, real: Any) -> Any:
        events.append("batch")
        time.sleep(0.005)
        return real(requests)

    Intercepted(engine, run)
    real = engine.runner.layout.measure

    def measure() -> Iterator[Gap | None]:
        for gap in real():
            events.append("part")
            yield gap

    engine.runner.layout.measure = measure
    items = [{"prompt": [5, 6, 7], "response": [8 + n, 9, 10]} for n in range(40)]
    request = parse(RewardsRequest, {"scorer": "logprob", "items": items})
    replies: list[Any] = []

    async def ask() -> None:
        while listed(engine)[0] is None or engine.version == 1:
            replies.append(await engine.score(request))

    callers = [asyncio.create_task(ask()) for _ in range(3)]
    await until(lambda: bool(replies))
    await push(engine, new)
    await asyncio.gather(*callers)
    places = [place for place, event in enumerate(events) if event == "part"]
    between = events[places[0] : places[-1]].count("batch")
    assert between >= len(places) - 1 > 4
    assert listed(engine)[1] is None
    await engine.close()


async def test_a_newer_push_drops_what_was_measured_of_the_one_before(
    make_engine: MakeEngine, new: Path, language_model: Path
) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    is_within, may_go_on = threading.Event(), threading.Event()

    def of_version_2() -> Iterator[Gap | None]:
        is_within.set()
        may_go_on.wait(5)
        yield None
        yield Gap("logits", 2.0, 1.0)

    def of_version_3() -> Iterator[Gap | None]:
        yield None
        yield Gap("logits", 0.5, 1.0)

    measures = iter([of_version_2, of_version_3])
    engine.runner.layout.measure = lambda: next(measures)()
    await push(engine, new)
    await asyncio.to_thread(is_within.wait, 5)
    await engine.prepare(Weights(checkpoint=str(language_model), version=3))
    commit = asyncio.create_task(engine.commit(3))
    await asyncio.sleep(0.05)
    assert listed(engine) == (None, "version 2 has not been probed yet")
    may_go_on.set()
    await commit
    assert listed(engine) == (None, "version 3 has not been probed yet")
    await until(lambda: listed(engine)[0] is not None)
    assert listed(engine) == (0.5, None)
    await engine.close()


@pytest.mark.parametrize("can_copy", [True, False])
async def test_a_probe_that_fails_says_why_and_the_engine_serves_on(
    can_copy: bool, make_engine: MakeEngine, new: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine("causal_lm", ["logprob"])

    def measure() -> Iterator[Gap | None]:
        yield None
        raise ValueError("no numbers\nof any kind")

    engine.runner.layout.measure = measure if can_copy else None
    await push(engine, new)
    await until(lambda: "could not be probed" in (listed(engine)[1] or ""))
    reason = "ValueError: no numbers"
    if not can_copy:
        reason = "RuntimeError: the model could not be copied when it was loaded"
    assert listed(engine) == (None, f"version 2 could not be probed: {reason}")
    assert f"version 2 could not be probed: {reason}" in caplog.messages
    item = {"prompt": [5], "response": [6, 7]}
    reply = await engine.score(parse(RewardsRequest, {"scorer": "logprob", "items": [item]}))
    assert reply.version == 2
    engine.check_health()
    await engine.close()


async def test_an_engine_that_closes_ends_its_probe(make_engine: MakeEngine, new: Path) -> None:
    engine = make_engine("causal_lm", ["logprob"])
    await push(engine, new)
    await engine.close()
    await asyncio.sleep(0.05)
    assert listed(engine) == (None, "version 2 has not been probed yet")
