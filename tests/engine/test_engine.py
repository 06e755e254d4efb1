"""The engine under load and under failure: shared batches, the culprit alone fails, everybody gets
an answer."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fakes import web
from fakes.layouts import Intercepted
from tokenreward import errors
from tokenreward.contract import Signals
from tokenreward.engine.runner import max_batch_tokens
from tokenreward.wire import RewardsRequest, Usage, parse

POISON = 77


def request(*responses: list[int], scorer: str = "endogenous", **more: Any) -> RewardsRequest:
    return parse(
        RewardsRequest,
        {"scorer": scorer, "items": [{"prompt": [5], "response": r} for r in responses], **more},
    )


class Faulty:
    """The real layout, with a fault in the way: `fault(rows)` may raise or wait before the model
    runs."""

    def __init__(self, engine: Any, fault: Callable[[list[Any]], None]) -> None:
        self._layout, self._fault = engine.runner.layout, fault
        self.batches: list[int] = []
        engine.runner.layout = self

    def run(self, work: Any) -> Any:
        rows = [row for row, _ in work]
        self.batches.append(len(rows))
        self._fault(rows)
        return self._layout.run(work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layout, name)


def poisoned(rows: list[Any], error: Exception) -> None:
    if any(POISON in row.ids for row in rows):
        raise error


@pytest.fixture
def engine(make_engine: Callable[..., Any]) -> Any:
    return make_engine("causal_lm", ["endogenous", "constant"])


@pytest.mark.parametrize(("given", "limit"), [({}, 4096), ({"max_batch_tokens": 6}, 6)])
async def test_a_pass_takes_no_more_tokens_than_the_listing_says(
    make_engine: Callable[..., Any], given: dict[str, int], limit: int
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], **given)
    assert [entry["limits"]["max_batch_tokens"] for entry in engine.describe()] == [limit]
    layout = Faulty(engine, lambda rows: None)
    await engine.score(request(*[[10 + i] for i in range(9)]))  # of two tokens each
    assert layout.batches == ([9] if limit == 4096 else [3, 3, 3])


def test_a_gpu_is_given_larger_passes_than_a_cpu() -> None:
    assert max_batch_tokens(torch.device("cpu")) == 4096
    assert max_batch_tokens(torch.device("cuda", 1)) == 16384


async def test_items_of_concurrent_requests_share_a_batch(engine: Any) -> None:
    layout = Faulty(engine, lambda rows: time.sleep(0.2))
    replies = await asyncio.gather(*(engine.score(request([10 + i])) for i in range(9)))
    assert len(layout.batches) <= 3  # the first alone or with early ones, the rest while it ran
    assert sum(layout.batches) == 9
    assert all(reply.items[0].error is None for reply in replies)


async def test_the_event_loop_answers_while_a_batch_runs(engine: Any) -> None:
    Faulty(engine, lambda rows: time.sleep(2.0))
    scoring = asyncio.create_task(engine.score(request([10])))
    await asyncio.sleep(0.1)
    longest = 0.0
    while not scoring.done():
        began = time.monotonic()
        await asyncio.sleep(0.01)
        engine.check_health()
        longest = max(longest, time.monotonic() - began)
    assert longest < 1.0  # a loop that waited would take the whole 2 s


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (RuntimeError("shape mismatch"), "scorer_failed", False),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", True),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "out_of_memory", True),
    ],
)
async def test_only_the_culprit_of_a_failed_pass_fails(
    engine: Any, error: Exception, code: str, retryable: bool
) -> None:
    layout = Faulty(engine, lambda rows: poisoned(rows, error))
    good = [[10, 11], [12], [13, 14, 15], [16], [17], [18]]
    reply = await engine.score(request(*good[:4], [POISON], *good[4:]))
    assert layout.batches[0] == 7
    assert len(layout.batches) <= 7  # split in halves, not item by item
    culprit = reply.items.pop(4)
    assert culprit.error.code == code
    assert culprit.error.retryable is retryable
    assert culprit.rewards is None
    for item, response in zip(reply.items, good, strict=True):
        assert len(item.rewards) == len(response)
    assert (await engine.score(request([20]))).items[0].error is None


async def test_the_payload_is_not_in_the_error(engine: Any) -> None:
    Faulty(engine, lambda rows: poisoned(rows, ValueError("the secret text")))
    reply = await engine.score(request([POISON]))
    assert "secret" not in reply.items[0].error.message


def spoil_poison(engine: Any) -> None:
    """Makes the model's outputs for a row with POISON in it not finite."""

    def spoil(work: Any, run: Any) -> Any:
        outputs = run(work)
        for (row, _), output in zip(work, outputs, strict=True):
            if POISON in row.ids:
                output.chosen[0] = np.nan
        return outputs

    Intercepted(engine, spoil)


async def test_numbers_that_are_not_finite_are_an_error_of_their_item(engine: Any) -> None:
    spoil_poison(engine)
    items = (await engine.score(request([10], [POISON], [11]))).items
    assert [item.error and item.error.code for item in items] == [None, "non_finite", None]


async def test_a_lost_device_fails_everybody_retryably_and_the_health_check(engine: Any) -> None:
    Faulty(
        engine,
        lambda rows: poisoned(
            rows, RuntimeError("CUDA error: an illegal memory access was encountered")
        ),
    )
    with pytest.raises(errors.InternalError) as caught:
        await asyncio.gather(engine.score(request([POISON])), engine.score(request([10])))
    assert caught.value.retryable
    with pytest.raises(errors.InternalError):
        engine.check_health()


@pytest.mark.parametrize(("max_batch_s", "is_stuck"), [(0.1, True), (5.0, False)])
async def test_a_batch_that_takes_longer_than_its_setting_fails_the_health_check(
    make_engine: Callable[..., Any], max_batch_s: float, is_stuck: bool
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_batch_s=max_batch_s)
    Faulty(engine, lambda rows: time.sleep(0.6))
    scoring = asyncio.create_task(engine.score(request([10])))
    await asyncio.sleep(0.3)
    if is_stuck:
        with pytest.raises(errors.InternalError, match=r"more than 0.1 s \(`max_batch_s`\)"):
            engine.check_health()
    else:
        engine.check_health()
    await scoring
    engine.check_health()


async def test_a_caller_who_has_gone_is_not_computed(engine: Any) -> None:
    layout = Faulty(engine, lambda rows: time.sleep(0.3))
    first = asyncio.create_task(engine.score(request([10])))
    await asyncio.sleep(0.1)
    gone = asyncio.create_task(engine.score(request([11], [12])))
    stays = asyncio.create_task(engine.score(request([13])))
    await asyncio.sleep(0.1)
    gone.cancel()
    replies = await asyncio.gather(first, stays)
    assert layout.batches == [1, 1]
    assert all(reply.items[0].error is None for reply in replies)
    assert engine.batcher.queued_tokens == 0


async def test_a_deadline_is_an_error_and_work_past_it_is_not_started(engine: Any) -> None:
    layout = Faulty(engine, lambda rows: time.sleep(2.0))
    first = asyncio.create_task(engine.score(request([10])))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceededError, match=r"within 0\.15 s"):
        await engine.score(request([11]), timeout_s=0.15 + 1e-9)  # as it is left of a deadline
    assert time.monotonic() - began < 1.5
    await first
    await asyncio.sleep(0.1)
    assert layout.batches == [1]


async def test_the_device_goes_on_while_the_event_loop_is_busy_and_its_next_batch_has_late_comers(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_batch_requests=2)
    layout = Faulty(engine, lambda rows: time.sleep(0.05))
    scoring = [asyncio.create_task(engine.score(request([10 + i]))) for i in range(6)]
    await web.until(lambda: engine.batcher.queued_items >= 4)
    time.sleep(0.6)  # noqa: ASYNC251 - what a busy event loop is
    assert sum(layout.batches) == 6
    replies = await asyncio.gather(*scoring)
    assert all(reply.items[0].error is None for reply in replies)


async def test_what_expired_while_the_event_loop_was_busy_is_answered_and_not_computed(
    engine: Any,
) -> None:
    layout = Faulty(engine, lambda rows: time.sleep(0.5))
    first = asyncio.create_task(engine.score(request([10])))
    await web.until(lambda: bool(layout.batches))
    late = asyncio.create_task(engine.score(request([11]), timeout_s=0.2))
    await web.until(lambda: engine.batcher.queued_items == 1)
    time.sleep(1.2)  # noqa: ASYNC251
    assert layout.batches == [1]
    with pytest.raises(errors.DeadlineExceededError):
        await late
    await first


async def test_a_full_queue_refuses_with_retry_after_and_recovers(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_queued_tokens=10)
    Faulty(engine, lambda rows: time.sleep(0.3))
    running = asyncio.create_task(engine.score(request([10] * 7)))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(engine.score(request([10] * 7)))
    await asyncio.sleep(0.1)
    with pytest.raises(errors.Overloaded) as caught:
        await engine.score(request([10] * 7))
    assert caught.value.retry_after_s >= 1
    await asyncio.gather(running, waiting)
    assert (await engine.score(request([10] * 7))).items[0].error is None
    with pytest.raises(errors.LargerThanQueue):
        await engine.score(request([10] * 20))


async def test_a_scorer_that_raises_fails_its_item_only(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = engine.scorers["endogenous"].scorer
    right = type(scorer).score

    def wrong(self: Any, sample: Any, outputs: Any, options: Any) -> Any:
        if POISON in sample.response_ids:
            raise KeyError("mine")
        return right(self, sample, outputs, options)

    monkeypatch.setattr(type(scorer), "score", wrong)
    items = (await engine.score(request([10], [POISON]))).items
    assert items[0].error is None
    assert items[1].error.code == "scorer_failed"


async def test_a_bug_outside_the_model_answers_everybody_and_the_next_batch_works(
    engine: Any,
) -> None:
    ask = engine.runner.launch
    engine.runner.launch = lambda batch: 1 / 0
    with pytest.raises(errors.InternalError):
        await engine.score(request([10]))
    engine.runner.launch = ask
    assert (await engine.score(request([10]))).items[0].error is None


async def test_closing_answers_whoever_waits(engine: Any) -> None:
    Faulty(engine, lambda rows: time.sleep(0.3))
    running = asyncio.create_task(engine.score(request([10])))
    await asyncio.sleep(0.1)
    waiting = asyncio.create_task(engine.score(request([11])))
    await asyncio.sleep(0.1)
    await engine.close()
    results = await asyncio.gather(running, waiting, return_exceptions=True)
    assert all(isinstance(result, errors.InternalError) for result in results)


async def test_what_is_measured_is_reported(make_engine: Callable[..., Any]) -> None:
    reported: list[tuple[str, float, dict[str, str]]] = []
    engine = make_engine(
        "causal_lm",
        ["endogenous"],
        report=lambda name, value=1.0, **labels: reported.append((name, value, labels)),
    )
    await engine.score(request([10, 11], [999]))
    totals = {(name, *labels.values()): value for name, value, labels in reported}
    assert totals["items_total", "endogenous"] == 1  # the other failed
    assert totals["tokens_total", "prompt"] == 1
    assert totals["tokens_total", "response"] == 2
    assert totals["errors_total", "token_out_of_vocabulary"] == 1
    assert totals["batch_items",] == 1
    assert totals["batch_tokens",] == 3
    assert totals["queued_tokens",] == 0
    assert totals["model_version",] == 1
    assert totals["compute_seconds",] > 0


async def test_tokens_of_an_item_that_fails_once_it_has_been_tokenised_are_not_counted(
    make_engine: Callable[..., Any],
) -> None:
    totals: dict[tuple[str, ...], float] = {}
    engine = make_engine(
        "causal_lm",
        ["endogenous"],
        report=lambda name, value=1.0, **labels: totals.update({(name, *labels.values()): value}),
    )
    spoil_poison(engine)
    reply = await engine.score(request([10, 11], [12, POISON, 13]))
    assert [item.error is None for item in reply.items] == [True, False]
    assert reply.usage == Usage(prompt_tokens=2, response_tokens=5)
    assert totals["items_total", "endogenous"] == 1
    assert totals["tokens_total", "prompt"] == 1
    assert totals["tokens_total", "response"] == 2


async def test_a_prompt_that_items_share_is_computed_once_and_reported(
    make_engine: Callable[..., Any],
) -> None:
    totals: dict[str, float] = {}
    engine = make_engine(
        "causal_lm",
        ["endogenous"],
        report=lambda name, value=1.0, **_: totals.update({name: value}),
    )
    prompt = list(range(3, 43))
    items = [{"prompt": prompt, "response": [50 + i, 60]} for i in range(5)]
    together = await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": items}))
    assert totals["batch_tokens"] == 5 * 42
    assert totals["computed_tokens_total"] == 40 + 5 * 2
    assert totals["shared_tokens_total"] == 4 * 40
    for item, shared in zip(items, together.items, strict=True):
        alone = await engine.score(parse(RewardsRequest, {"scorer": "endogenous", "items": [item]}))
        np.testing.assert_allclose(shared.rewards, alone.items[0].rewards, rtol=0, atol=1e-4)


async def test_ten_thousand_items_come_back_in_order(engine: Any) -> None:
    body = request(*([10 + i % 50] * (1 + i % 3) for i in range(10_000)), scorer="constant")
    items = (await engine.score(body)).items
    assert [item.index for item in items] == list(range(10_000))
    assert all(len(item.rewards) == 1 + i % 3 for i, item in enumerate(items))


async def test_a_failed_pass_has_let_go_of_its_tensors_when_the_halves_run(engine: Any) -> None:
    alive: list[int] = []
    tensors: list[weakref.ref[torch.Tensor]] = []

    def full(rows: list[Any]) -> None:
        alive.append(sum(tensor() is not None for tensor in tensors))
        activations = torch.zeros(1000)
        tensors.append(weakref.ref(activations))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    Faulty(engine, full)
    reply = await engine.score(request([10], [11], [12], [13]))
    assert all(item.error is None for item in reply.items)
    assert alive == [0] * len(alive)


async def test_a_step_that_fails_answers_its_callers_and_the_next_step_works(
    make_engine: Callable[..., Any],
) -> None:
    broken = True

    def report(name: str, value: float = 1.0, **labels: str) -> None:
        if broken and name == "batch_items":
            raise ValueError("no such metric")

    engine = make_engine("causal_lm", ["endogenous"], report=report, max_batch_requests=1)
    replies = await asyncio.wait_for(
        asyncio.gather(*(engine.score(request([10 + i])) for i in range(3))), 20
    )
    assert all(reply.items[0].error is None for reply in replies)
    broken = False
    assert (await engine.score(request([10]))).items[0].error is None


@pytest.mark.parametrize("method", ["rows", "needs"])
async def test_a_scorer_that_raises_before_the_pass_fails_its_items_only(
    engine: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def wrong(*args: Any) -> Any:
        raise KeyError("mine")

    monkeypatch.setattr(type(engine.scorers["endogenous"].scorer), method, wrong)
    body = {"scorers": ["endogenous", "constant"], "items": [{"prompt": [5], "response": [6]}]}
    results = (await engine.score(parse(RewardsRequest, body))).items[0].scorers
    assert results["endogenous"].error.code == "scorer_failed"
    assert results["constant"].error is None


async def test_signals_of_another_length_are_an_error_not_stretched(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Signals(score=1.0, values=np.ones(1, dtype=np.float32), kind="levels")
    monkeypatch.setattr(type(engine.scorers["constant"].scorer), "score", lambda *args: short)
    (item,) = (await engine.score(request([10, 11, 12], scorer="constant"))).items
    assert item.error.code == "scorer_failed"
    assert "[1] for 3 tokens" in item.error.message


async def test_once_a_request_has_failed_its_other_items_are_not_computed(
    make_engine: Callable[..., Any],
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_batch_requests=1)
    ask, batches = engine.runner.launch, []

    def fail_first(batch: Any) -> Any:
        batches.append(len(batch))
        if len(batches) == 1:
            raise ZeroDivisionError
        return ask(batch)

    engine.runner.launch = fail_first
    with pytest.raises(errors.InternalError):
        await engine.score(request([10], [11], [12], [13]))
    assert (await engine.score(request([14]))).items[0].error is None
    assert len(batches) <= 3  # the failed one, the new one, and at most one that had begun
