"""Two engines of one deployment: what one lends and the other computes is what it would have
computed itself, and whatever becomes of a loan, every caller gets an answer, once."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import tiny
from fakes.layouts import Intercepted
from fakes.pairs import name_inputs, pairing_tokenizer
from fakes.web import until
from tokenreward.contract import Needs, Outputs, Row, RowRequest
from tokenreward.engine import lending
from tokenreward.engine.lending import Lending, Loan, Repayment, num_loan_bytes
from tokenreward.errors import InternalError, OutOfMemory, RequestError
from tokenreward.wire import RewardsRequest, parse

NUM_ITEMS = 6


@dataclass
class Replica:
    """An engine that lends, and what it reported."""

    engine: Any
    lending: Lending
    counts: Counter[str]


@pytest.fixture
def replica(make_engine: Callable[..., Any]) -> Callable[..., Replica]:
    def make(task: str = "causal_lm", scorers: Any = ("endogenous",), **settings: Any) -> Replica:
        counts: Counter[str] = Counter()

        def report(name: str, value: float = 1.0, **labels: str) -> None:
            counts[" ".join([name, *labels.values()])] += value

        engine = make_engine(task, list(scorers), report=report, **settings)
        return Replica(engine, Lending(engine, report), counts)

    return make


def body(scorer: str = "endogenous", **more: Any) -> RewardsRequest:
    items = [
        {"prompt": [5, 6, 7 + i], "response": list(range(20, 23 + i))} for i in range(NUM_ITEMS)
    ]
    return parse(RewardsRequest, {"scorer": scorer, "items": items, **more})


def one_item(replica: Replica) -> RewardsRequest:
    scorer = next(iter(replica.engine.scorers))
    return parse(RewardsRequest, {"scorer": scorer, "items": [{"prompt": [3], "response": [4]}]})


@asynccontextmanager
async def stuck(
    replica: Replica,
    work: Coroutine[Any, Any, Any] | None = None,
    *,
    error: type[Exception] | None = None,
) -> AsyncIterator[None]:
    """The device is at work meanwhile, and what comes waits.

    Args:
        replica: Whose device it is.
        work: What it is at work on; None for a request.
        error: How that fails.
    """
    gate, busy = threading.Event(), threading.Event()

    def run(requests: Any, real: Any) -> Any:
        busy.set()
        gate.wait(20)
        return real(requests)

    Intercepted(replica.engine, run)
    first = asyncio.create_task(work or replica.engine.score(one_item(replica)))
    await until(busy.is_set)
    try:
        yield
    finally:
        gate.set()
        with pytest.raises(error) if error else nullcontext():
            await first


async def waiting(replica: Replica, request: RewardsRequest, **more: Any) -> asyncio.Task[Any]:
    task = asyncio.create_task(replica.engine.score(request, **more))
    await until(lambda: replica.engine.batcher.queued_items == len(request.items))
    return task


def carried(thing: Any) -> Any:
    """What arrives at another process."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - our own


def altered(paid: Repayment, *, jobs: Any = None, **others: Any) -> Repayment:
    """The repayment with other jobs, or of other weights."""
    weights = replace(paid.weights, **others)
    return Repayment(paid.number, weights, paid.jobs if jobs is None else jobs)


async def computed(lender: Replica, thief: Replica) -> Repayment:
    """What another replica computed of all that may be lent."""
    loan = lender.lending.lend(lender.lending.weights, 10_000)
    assert loan is not None
    return await thief.lending.compute(loan)


async def through(lender: Replica, thief: Replica) -> int:
    """Lends and repays once. Returns how many jobs."""
    loan = lender.lending.lend(lender.lending.weights, 10_000)
    if loan is None:
        return 0
    lender.lending.repay(carried(await thief.lending.compute(carried(loan))))
    return len(loan.jobs)


CASES = {
    "endogenous": ("causal_lm", ["endogenous"], {}),
    "tables": ("causal_lm", ["logprob"], {"options": {"top_k": 5}}),
    "entropy": ("causal_lm", ["entropy"], {}),
    "values": ("reward_model", [{"type": "reward_model", "options": {"red": True}}], {}),
    "attention": ("reward_model", ["attention_dense"], {}),
}


@pytest.mark.parametrize(
    ("case", "max_batch_requests"), [("endogenous", 1), *((case, 100) for case in CASES)]
)
async def test_rewards_are_those_of_the_lender_alone(
    replica: Callable[..., Replica], case: str, max_batch_requests: int
) -> None:
    task, scorers, more = CASES[case]
    lender, thief, alone = (
        replica(task, scorers, max_batch_requests=max_batch_requests) for _ in range(3)
    )
    request = body(next(iter(lender.engine.scorers)), **more)
    truth = await alone.engine.score(request)
    async with stuck(lender):
        asked = await waiting(lender, request)
        num_lent = 0
        while count := await through(lender, thief):
            num_lent += count
    reply = await asked
    assert num_lent >= NUM_ITEMS // 2
    for ours, theirs in zip(reply.items, truth.items, strict=True):
        assert ours.error is None
        close = np.testing.assert_array_equal if max_batch_requests == 1 else allclose
        close(ours.rewards, theirs.rewards)
        close(ours.score, theirs.score)
        if more:
            close(ours.top_logprobs, theirs.top_logprobs)
    assert lender.counts["lent_items_total computed"] == num_lent
    assert lender.counts["lent_items_total returned"] == 0
    assert lender.counts["items_total " + request.names[0]] == NUM_ITEMS + 1
    computed = lender.counts["batch_items"] + thief.counts["batch_items"]
    assert computed == NUM_ITEMS + 1
    assert lender.engine.batcher.queued_tokens == 0


def allclose(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


async def test_rows_of_a_reference_model_are_lent_too(
    replica: Callable[..., Replica], tmp_path: Path
) -> None:
    other = tiny.save(tmp_path / "other", seed=1)
    lender, thief, alone = (
        replica("causal_lm", ["implicit"], reference_checkpoint=str(other)) for _ in range(3)
    )
    truth = await alone.engine.score(body("implicit"))
    async with stuck(lender):
        asked = await waiting(lender, body("implicit"))
        assert await through(lender, thief)
    for ours, theirs in zip((await asked).items, truth.items, strict=True):
        allclose(ours.rewards, theirs.rewards)


async def test_an_encoder_reads_the_two_texts_of_a_lent_row_as_the_lender_does(
    replica: Callable[..., Replica], tmp_path: Path
) -> None:
    model = tiny.model("bert", "reward_model")
    model.config.is_decoder = False
    model.save_pretrained(tmp_path)
    pairing_tokenizer("bert").save_pretrained(tmp_path)
    name_inputs(tmp_path)
    lender, thief, alone = (
        replica("reward_model", ["reward_model"], checkpoint=tmp_path) for _ in range(3)
    )
    one, two = [0, 20, 30, 40, 1], [0, 20, 30, 1, 40, 1]
    items = [{"prompt": "", "response": ids, "whole": "sequence"} for ids in (one, two)]
    request = parse(RewardsRequest, {"scorer": "reward_model", "items": items * 3})
    truth = await alone.engine.score(request)
    async with stuck(lender):
        asked = await waiting(lender, request)
        assert await through(lender, thief)
    for ours, theirs in zip((await asked).items, truth.items, strict=True):
        allclose(ours.score, theirs.score)


async def test_the_timing_of_a_reply_counts_each_batch_once_wherever_it_ran(
    replica: Callable[..., Replica],
) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        repayment = await computed(lender, thief)
        slow = [(outputs, 9.0, 3.0, number) for outputs, _, _, number in repayment.jobs]
        lender.lending.repay(altered(repayment, jobs=slow))
    reply = await asked
    assert reply.timing.queue_s == 9.0
    assert 3.0 < reply.timing.compute_s < 6.0


@pytest.mark.parametrize("other", ["version", "checkpoint"])
async def test_a_loan_of_other_weights_is_not_made_and_not_computed(
    replica: Callable[..., Replica], language_model: Path, tmp_path: Path, other: str
) -> None:
    lender = replica()
    if other == "version":
        thief = replica(version=2)
    else:
        shutil.copytree(language_model, tmp_path / "other")
        thief = replica(checkpoint=tmp_path / "other")
    async with stuck(lender):
        asked = await waiting(lender, body())
        assert lender.lending.lend(thief.lending.weights, 10_000) is None
        repayment = await computed(lender, thief)
        assert repayment.jobs == []
        lender.lending.repay(repayment)
        assert lender.engine.batcher.queued_items == NUM_ITEMS
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS
    assert thief.counts["batch_items"] == 0


@pytest.mark.parametrize("other", [{"version": 0}, {"checkpoint": "/others"}])
async def test_outputs_of_weights_that_serve_no_more_are_computed_again(
    replica: Callable[..., Replica], other: dict[str, Any]
) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        repayment = await computed(lender, thief)
        lender.lending.repay(altered(repayment, **other))
        assert lender.engine.batcher.queued_items == NUM_ITEMS
    assert lender.counts["lent_items_total returned"] == len(repayment.jobs)
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS


def wrong_length(outputs: list[Outputs]) -> list[Outputs]:
    (one,) = outputs
    assert one.chosen is not None
    lse = {key: numbers[:-1] for key, numbers in one.lse.items()}
    return [replace(one, chosen=one.chosen[:-1], lse=lse)]


GARBAGE: dict[str, Callable[[Repayment], Repayment]] = {
    "nothing": lambda paid: altered(paid, jobs=[]),
    "one too few": lambda paid: altered(paid, jobs=paid.jobs[1:]),
    "no outputs": lambda paid: altered(paid, jobs=[([], 0.0, 0.0, 1)] * len(paid.jobs)),
    "no list": lambda paid: altered(paid, jobs=[(7, 0.0, 0.0, 1)] * len(paid.jobs)),
    "empty outputs": lambda paid: altered(paid, jobs=[([Outputs()], 0.0, 0.0, 1)] * len(paid.jobs)),
    "a token too few": lambda paid: altered(
        paid, jobs=[(wrong_length(outputs), 0.0, 0.0, 1) for outputs, *_ in paid.jobs]
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_no_answer(replica: Callable[..., Replica], kind: str) -> None:
    lender, thief, alone = replica(), replica(), replica()
    truth = await alone.engine.score(body())
    async with stuck(lender):
        asked = await waiting(lender, body())
        lender.lending.repay(GARBAGE[kind](await computed(lender, thief)))
        assert lender.engine.batcher.queued_items == NUM_ITEMS
    for ours, theirs in zip((await asked).items, truth.items, strict=True):
        allclose(ours.rewards, theirs.rewards)


UNREADABLE: dict[str, Any] = {
    "no jobs at all": lambda paid: 7,
    "a job that is none": lambda paid: [paid.jobs[0], None, *paid.jobs[2:]],
    "a batch without a number": lambda paid: [
        paid.jobs[0],
        *((*job[:3], []) for job in paid.jobs[1:]),
    ],
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_a_repayment_that_cannot_be_read_loses_no_job(
    replica: Callable[..., Replica], kind: str
) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        paid = await computed(lender, thief)
        with pytest.raises(TypeError):
            lender.lending.repay(altered(paid, jobs=UNREADABLE[kind](paid)))
        lender.lending.repay(paid)  # nothing is answered twice
        num_paid = lender.counts["lent_items_total computed"]
        assert num_paid == (0 if kind == "no jobs at all" else 1)
        assert lender.engine.batcher.queued_items == NUM_ITEMS - num_paid
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS
    assert lender.counts["lent_items_total returned"] == len(paid.jobs) - num_paid
    assert lender.engine.batcher.queued_tokens == 0


async def test_a_loan_that_cannot_be_made_loses_no_job(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    lender = replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        for step in ("num_loan_bytes", "_borrowed"):
            with monkeypatch.context() as patch:
                patch.setattr(lending, step, lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    lender.lending.lend(lender.lending.weights, 10_000)
            assert lender.engine.batcher.queued_items == NUM_ITEMS
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS
    assert lender.engine.batcher.queued_tokens == 0


async def test_a_loan_is_answered_once_and_not_after_it_was_taken_back(
    replica: Callable[..., Replica],
) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        first, second = (
            lender.lending.lend(lender.lending.weights, 10_000),
            lender.lending.lend(lender.lending.weights, 10_000),
        )
        assert first is not None
        assert second is not None
        paid = await thief.lending.compute(first)
        lender.lending.repay(paid)
        lender.lending.repay(paid)
        late = await thief.lending.compute(second)
        lender.lending.take_back(second.number)
        lender.lending.take_back(second.number)
        lender.lending.repay(late)
        assert lender.engine.batcher.queued_items == NUM_ITEMS - len(first.jobs)
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS
    assert lender.counts["lent_items_total computed"] == len(first.jobs)
    assert lender.counts["lent_items_total returned"] == len(second.jobs)


async def test_a_loan_that_came_back_is_computed_here(replica: Callable[..., Replica]) -> None:
    lender = replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        while loan := lender.lending.lend(lender.lending.weights, 10_000, lends_all=True):
            lender.lending.take_back(loan.number)
        assert lender.engine.batcher.queued_items == NUM_ITEMS
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS


async def test_the_error_of_an_item_is_its_error_and_no_others(
    replica: Callable[..., Replica],
) -> None:
    lender, thief = replica(), replica()
    poison = 20 + 2 + NUM_ITEMS - 1  # in the response of the last item alone

    def run(requests: Any, real: Any) -> Any:
        if any(poison in row.ids for row, _ in requests):
            raise ValueError("no")
        return real(requests)

    Intercepted(thief.engine, run)
    async with stuck(lender):
        asked = await waiting(lender, body())
        assert await through(lender, thief) > 0
    errors = [item.error for item in (await asked).items]
    assert errors[:-1] == [None] * (NUM_ITEMS - 1)
    assert errors[-1].code == "scorer_failed"
    assert lender.counts["lent_items_total returned"] == 0


@pytest.mark.parametrize("error", [MemoryError(), InternalError("lost")])
async def test_what_the_other_replica_cannot_do_is_done_here(
    replica: Callable[..., Replica], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    lender, thief = replica(), replica()

    def fail(requests: Any, real: Any) -> Any:
        raise error

    if isinstance(error, InternalError):
        monkeypatch.setattr(thief.engine.runner, "launch", lambda batch: fail(batch, None))
    else:
        Intercepted(thief.engine, fail)
    async with stuck(lender):
        asked = await waiting(lender, body())
        num_lent = await through(lender, thief)
        assert lender.engine.batcher.queued_items == NUM_ITEMS
    assert num_lent > 0
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS
    assert lender.counts["lent_items_total returned"] == num_lent


async def test_a_thief_that_closes_gives_back(replica: Callable[..., Replica]) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender), stuck(thief, error=RequestError):
        asked = await waiting(lender, body())
        loan = lender.lending.lend(lender.lending.weights, 10_000)
        assert loan is not None
        computing = asyncio.create_task(thief.lending.compute(loan))
        await until(lambda: thief.engine.batcher.queued_items == len(loan.jobs))
        await thief.engine.close()
        lender.lending.repay(await computing)
        assert lender.engine.batcher.queued_items == NUM_ITEMS
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS


async def test_callers_who_go_and_deadlines_that_pass_leave_nothing_behind(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        loan = lender.lending.lend(lender.lending.weights, 10_000)
        assert loan is not None
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        lender.lending.repay(await thief.lending.compute(loan))
        assert lender.lending.lend(lender.lending.weights, 10_000) is None
        assert lender.engine.batcher.queued_tokens == 0
        expired = Loan(
            9, loan.weights, [(rows, -1.0, 5.0) for rows, _, _ in loan.jobs], loan.num_tokens
        )
        outputs = [job[0] for job in (await thief.lending.compute(expired)).jobs]
        assert outputs == [None] * len(loan.jobs)


async def test_a_replica_is_idle_while_only_borrowed_jobs_wait(
    replica: Callable[..., Replica],
) -> None:
    lender, thief = replica(), replica()
    assert thief.lending.is_idle
    async with stuck(thief), stuck(lender):
        asked = await waiting(lender, body())
        assert not lender.lending.is_idle
        loan = lender.lending.lend(lender.lending.weights, 10_000)
        assert loan is not None
        computing = asyncio.create_task(thief.lending.compute(loan))
        await until(lambda: thief.engine.batcher.queued_items == len(loan.jobs))
        assert thief.lending.is_idle
        assert thief.lending.lend(thief.lending.weights, 10_000) is None  # a loan is not lent on
        own = asyncio.create_task(thief.engine.score(body()))
        await until(lambda: thief.engine.batcher.queued_items == len(loan.jobs) + NUM_ITEMS)
        assert not thief.lending.is_idle
    lender.lending.repay(await computing)
    await asyncio.gather(asked, own)


async def test_a_replica_is_not_idle_while_its_own_caller_waits_behind_a_loan_that_runs(
    replica: Callable[..., Replica],
) -> None:
    lender, thief = replica(), replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        loan = lender.lending.lend(lender.lending.weights, 10_000)
        assert loan is not None
        assert len(loan.jobs) > 1
        async with stuck(thief, thief.lending.compute(loan)):
            assert thief.lending.is_idle  # there is room for one more loan
            own = await waiting(thief, one_item(thief))
            assert not thief.lending.is_idle
        await own
        lender.lending.take_back(loan.number)
    await asked


def test_a_late_loan_is_one_that_takes_some_times_as_long_as_here(
    replica: Callable[..., Replica],
) -> None:
    lender = replica()
    assert lender.lending.patience_s(1) == 30
    lender.engine.batcher.note_rate(1000, 1.0)
    assert lender.lending.patience_s(500) == 4
    assert lender.lending.patience_s(10**6) == 30


async def test_what_waits_a_moment_is_no_surplus(replica: Callable[..., Replica]) -> None:
    lender = replica()
    async with stuck(lender):
        asked = await waiting(lender, body())
        batcher = lender.engine.batcher
        assert lender.lending.surplus_tokens() == 0  # less than a batch, and nothing measured yet
        batcher.note_rate(batcher.waiting_tokens * 11, 1.0)
        assert lender.lending.surplus_tokens() == 0
        for _ in range(50):
            batcher.note_rate(batcher.waiting_tokens * 9, 1.0)
        assert lender.lending.surplus_tokens() == batcher.waiting_tokens
    await asked


def request(num_ids: int, num_response: int, **needs: Any) -> RowRequest:
    ids = np.arange(num_ids, dtype=np.int64)
    return RowRequest(Row(ids, num_ids - num_response, num_ids), Needs(**needs))


def outputs_like(asked: RowRequest) -> Outputs:
    """Outputs as large as a pass gives."""
    (row, needs), r = asked, asked.row.stop - asked.row.start
    return Outputs(
        chosen=np.zeros(r, np.float32),
        lse={key: np.zeros(r + 1, np.float32) for key in needs.temperatures},
        entropy={key: np.zeros(r + 1, np.float32) for key in needs.entropies},
        logits={key: np.zeros(r + 1, np.float32) for key in needs.labels},
        top_logits=np.zeros((r, needs.top_k or 0), np.float32),
        top_ids=np.zeros((r, needs.top_k or 0), np.int64),
        ranks=np.zeros(r, np.int64),
        values=np.zeros(r + 1, np.float32),
        attention={key: np.zeros(len(row.ids), np.float32) for key in needs.attention},
    )


@pytest.mark.parametrize(
    "one",
    [
        request(4000, 400, temperatures=frozenset({1.0})),
        request(4000, 400, temperatures=frozenset({1.0, 0.5}), entropies=frozenset({0.5})),
        request(500, 400, temperatures=frozenset({1.0}), top_k=100),
        request(500, 400, labels=frozenset(range(50))),
        request(4000, 4, attention=frozenset({"last", "last_step", "mean_step"})),
        request(1000, 900, values=True),
    ],
)
def test_a_loan_and_its_outputs_are_no_larger_than_estimated(one: RowRequest) -> None:
    ids = one.row.ids.astype(np.int32)
    out = len(pickle.dumps((one.needs, ids, 1, 2, "policy")))
    back = len(pickle.dumps(outputs_like(one)))
    estimate = num_loan_bytes([one])
    assert max(out, back) <= estimate + 500
    assert estimate <= 1.5 * max(out, back) + 20_000


async def test_what_could_be_too_large_is_not_lent(
    replica: Callable[..., Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    lender = replica("causal_lm", ["logprob"])
    async with stuck(lender):
        asked = await waiting(lender, body("logprob", options={"top_k": 100}))
        monkeypatch.setattr(lending, "MAX_LOAN_BYTES", 15_000)
        loan = lender.lending.lend(lender.lending.weights, 10_000)
        assert loan is not None
        assert len(loan.jobs) == 1
        lender.lending.take_back(loan.number)
        monkeypatch.setattr(lending, "MAX_LOAN_BYTES", 1000)
        assert lender.lending.lend(lender.lending.weights, 10_000) is None
    assert [item.error for item in (await asked).items] == [None] * NUM_ITEMS


def test_an_error_of_an_item_keeps_its_place_on_the_way() -> None:
    error = carried(OutOfMemory("too large", param="response"))
    assert (error.message, error.param, error.code) == ("too large", "response", "out_of_memory")
