"""What a replica says of its load: what arrived, and the rate of full batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from fakes.layouts import Intercepted
from tokenreward.engine.load import Load
from tokenreward.engine.slot import Slot
from tokenreward.entry import Entry
from tokenreward.wire import RewardsRequest, parse

ITEM = {"prompt": [5, 6, 7], "response": [8, 9]}

OVERHEAD_S, S_PER_TOKEN = 0.015, 5e-6  # of a GPU, roughly


def batch_s(num_tokens: int) -> float:
    return OVERHEAD_S + S_PER_TOKEN * num_tokens


def batch(num_tokens: int, num_entries: int = 1) -> list[Entry]:
    return [Entry(num_tokens=num_tokens // num_entries) for _ in range(num_entries)]


def load(*, max_batch_tokens: int = 16_384, max_batch_requests: int = 512) -> Load:
    return Load(max_batch_tokens=max_batch_tokens, max_batch_requests=max_batch_requests)


def test_before_the_first_batch_there_is_no_rate() -> None:
    assert load().tokens_per_s is None


def test_the_rate_of_full_batches_is_what_they_took() -> None:
    measured = load()
    for _ in range(5):
        measured.note_batch(batch(16_384), 2.0)
    assert measured.tokens_per_s == pytest.approx(8192)


def test_small_batches_of_several_sizes_tell_the_rate_of_a_larger_one() -> None:
    measured = load()
    for num_tokens in (1000, 6000, 3000, 9000, 2000):
        measured.note_batch(batch(num_tokens), batch_s(num_tokens))
    assert measured.tokens_per_s == pytest.approx(16_384 / batch_s(16_384), rel=1e-6)


def test_the_rate_reaches_no_further_than_four_times_the_batches_that_were_measured() -> None:
    measured = load()
    for num_tokens in (300, 500):
        measured.note_batch(batch(num_tokens), batch_s(num_tokens))
    mean = (300 * 0.95 + 500) / 1.95
    assert measured.tokens_per_s == pytest.approx(4 * mean / batch_s(4 * mean), rel=1e-6)


def test_a_batch_is_also_full_when_it_has_all_its_entries() -> None:
    measured = load(max_batch_requests=8)
    for num_entries in (2, 4):
        num_tokens = 100 * num_entries
        measured.note_batch(batch(num_tokens, num_entries), batch_s(num_tokens))
    assert measured.tokens_per_s == pytest.approx(800 / batch_s(800), rel=1e-6)


def test_batches_of_one_size_have_the_rate_that_they_had() -> None:
    measured = load()
    for _ in range(30):
        measured.note_batch(batch(400), 0.02)
    assert measured.tokens_per_s == pytest.approx(20_000)


@pytest.mark.parametrize("noise_s", [0.0, 0.005, 0.1])
def test_the_rate_is_never_below_that_of_the_batches_however_noisy(noise_s: float) -> None:
    rng, measured = random.Random(3), load()
    num_tokens, seconds = 0.0, 0.0
    for _ in range(200):
        size = rng.randrange(200, 2000)
        took = batch_s(size) + noise_s * rng.random()
        measured.note_batch(batch(size), took)
        num_tokens, seconds = num_tokens * 0.95 + size, seconds * 0.95 + took
    rate = measured.tokens_per_s
    assert rate is not None
    assert math.isfinite(rate)
    assert num_tokens / seconds * 0.999 <= rate <= 4.001 * num_tokens / seconds


@pytest.mark.parametrize(("num_tokens", "seconds"), [(0, 1.0), (10, 0.0), (0, 0.0)])
def test_a_batch_of_no_tokens_or_no_time_tells_nothing(num_tokens: int, seconds: float) -> None:
    measured = load()
    measured.note_batch(batch(num_tokens), seconds)
    assert measured.tokens_per_s is None


def test_arrivals_add_up_with_what_entries_count_for_beside_their_tokens() -> None:
    counted = load()
    counted.note_arrival([Entry(num_tokens=5, num_extra_tokens=2), Entry(num_tokens=1)])
    counted.note_arrival([Entry(num_tokens=10)])
    assert counted.arrived_tokens == 18


async def test_an_engine_reports_what_it_holds_and_nothing_once_it_has_answered(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"], max_batch_requests=1)
    assert Slot(engine).load_figures() == {"pending_tokens": 0, "arrived_tokens": 0}
    seen, num_tokens = [], 3 * len(ITEM["prompt"] + ITEM["response"])

    def observed(rows: Any, run: Callable[..., Any]) -> Any:
        seen.append(Slot(engine).load_figures()["pending_tokens"])
        return run(rows)

    Intercepted(engine, observed)
    body = {"scorer": "logprob", "items": [ITEM] * 3}
    await engine.score(parse(RewardsRequest, body))
    assert seen == [num_tokens, num_tokens * 2 / 3, num_tokens / 3]
    figures = Slot(engine).load_figures()
    assert (figures["pending_tokens"], figures["arrived_tokens"]) == (0, num_tokens)
    assert figures["tokens_per_second"] > 0
    await engine.close()


def test_while_weights_load_there_are_no_figures() -> None:
    assert Slot().load_figures() == {}


async def test_a_batch_that_failed_is_not_pending_and_tells_no_rate(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["logprob"])

    def fails(rows: Any, run: Callable[..., Any]) -> Any:
        raise RuntimeError("the device is gone")

    Intercepted(engine, fails)
    reply = await engine.score(parse(RewardsRequest, {"scorer": "logprob", "items": [ITEM]}))
    assert reply.items[0].error is not None
    assert Slot(engine).load_figures() == {"pending_tokens": 0, "arrived_tokens": 5}
    await engine.close()
