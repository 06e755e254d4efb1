"""Requests that are being tokenised: they hold up no reply, count for admission, and are answered
when the engine closes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fakes.layouts import Intercepted
from fakes.web import until
from tokenreward import errors
from tokenreward.engine.cost import (
    least_num_tokens,
    may_have_more_tokens,
    refuse_long_options,
)
from tokenreward.engine.preprocess import Preprocessor
from tokenreward.scorers._prompts import template
from tokenreward.wire import Item, RewardsRequest, encode_ids, parse

SLOW = 70
JOBS = Preprocessor.jobs


def request(token: int, *, num_items: int = 20) -> RewardsRequest:
    """Two tokens an item; by default too many items to be made ready on the event loop."""
    items = [{"prompt": [5], "response": [token]}] * num_items
    return parse(RewardsRequest, {"scorer": "endogenous", "items": items})


class Gate:
    """Preprocessor stops at a request of the slow token until the gate opens."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.num_waiting = 0

    def jobs(self, preprocessor: Preprocessor, asked: RewardsRequest, *rest: Any) -> Any:
        if asked.items[0].response == [SLOW]:
            self.num_waiting += 1
            assert self.opened.wait(30)
        return JOBS(preprocessor, asked, *rest)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate()
    monkeypatch.setattr(Preprocessor, "jobs", lambda self, *arguments: made.jobs(self, *arguments))
    yield made
    made.opened.set()


async def test_a_reply_does_not_wait_for_requests_that_are_being_tokenised(
    make_engine: Callable[..., Any], gate: Gate
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    computing = threading.Event()
    run = engine.runner.layout.run

    def wait_and_run(work: Any) -> Any:
        assert computing.wait(30)
        return run(work)

    Intercepted(engine, lambda requests, run: wait_and_run(requests))
    first = asyncio.create_task(engine.score(request(10)))
    await until(lambda: engine.worker.busy_since is not None)
    others = [asyncio.create_task(engine.score(request(SLOW))) for _ in range(3)]
    await until(lambda: gate.num_waiting == 2)
    computing.set()
    assert (await asyncio.wait_for(first, 10)).items[0].error is None
    gate.opened.set()
    await asyncio.gather(*others)


async def test_requests_that_are_being_tokenised_count_for_those_that_come_after_them(
    make_engine: Callable[..., Any], gate: Gate
) -> None:
    engine = make_engine("causal_lm", ["endogenous"], max_queued_tokens=60)
    first = [asyncio.create_task(engine.score(request(SLOW))) for _ in range(3)]  # of 20 items each
    await until(lambda: gate.num_waiting == 2)
    for num_items in (1, 20):
        with pytest.raises(errors.Overloaded) as caught:
            await engine.score(request(10, num_items=num_items))
        assert caught.value.retry_after_s >= 1
    first.pop().cancel()
    await until(lambda: engine.preprocess.num_tokens == 40)
    assert (await engine.score(request(10, num_items=1))).items[0].error is None
    gate.opened.set()
    await asyncio.gather(*first, return_exceptions=True)
    assert engine.preprocess.num_tokens == 0
    assert (await engine.score(request(10))).items[0].error is None


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"prompt": [5] * 30, "response": [6] * 20}, 6),
        ({"prompt": [5], "response": encode_ids([6] * 300)}, 200),
        ({"prompt": "a" * 100, "response": "b" * 60}, 20),
        (
            {
                "prompt": [{"role": "user", "content": "a" * 160}, {"role": "assistant"}],
                "response": "b",
            },
            20,
        ),
        ({"prompt": "", "response": "b"}, 1),
    ],
)
def test_what_a_request_counts_for_in_preprocessing_is_less_than_its_tokens(
    item: dict[str, Any], expected: int
) -> None:
    asked = parse(RewardsRequest, {"scorer": "endogenous", "items": [item] * 3})
    assert least_num_tokens(asked) == 3 * expected


async def test_each_label_of_a_scorer_counts_for_a_sixteenth_of_the_response(
    make_engine: Callable[..., Any],
) -> None:
    item = {"prompt": [1], "response": [3] * 32}
    labels = [f"{place}=endogenous" for place in range(33)]
    asked = parse(RewardsRequest, {"scorers": labels, "items": [item]})
    assert least_num_tokens(asked) == 33 // 8 + (32 // 8) * 32 // 16
    engine = make_engine("causal_lm", ["endogenous"], max_queued_tokens=33 + 32 * 2)
    assert (await engine.score(asked)).items[0].scorers is not None
    more = parse(RewardsRequest, {"scorers": [*labels, "endogenous"], "items": [item]})
    with pytest.raises(
        errors.LargerThanQueue, match="counts for at least 99 tokens, 66 of them for its many"
    ):
        await engine.score(more)


async def test_whoever_is_being_tokenised_or_waits_for_it_is_answered_when_the_engine_closes(
    make_engine: Callable[..., Any], gate: Gate
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    asked = [asyncio.create_task(engine.score(request(SLOW))) for _ in range(4)]
    await until(lambda: gate.num_waiting == 2)
    await engine.close()
    done, waiting = await asyncio.wait(asked, timeout=0.2)
    assert (len(done), len(waiting)) == (2, 2)  # two have no thread yet
    gate.opened.set()
    ends = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    for end in ends:
        assert isinstance(end, errors.InternalError)
        assert "the engine is closing" in end.message
    assert engine._work is None  # no step for ever on an engine that is closed


@pytest.mark.parametrize("num_items", [1, 20])
async def test_an_engine_that_is_closed_answers_that_it_is(
    make_engine: Callable[..., Any], num_items: int
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    await engine.score(request(10))
    await engine.close()
    with pytest.raises(errors.InternalError, match="the engine is closing"):
        await engine.score(request(10, num_items=num_items))
    assert engine._work.done()


async def test_who_is_cancelled_or_late_while_the_engine_closes_hears_just_that(
    make_engine: Callable[..., Any], gate: Gate
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    asked = [asyncio.create_task(engine.score(request(SLOW))) for _ in range(3)]
    late = asyncio.create_task(engine.score(request(SLOW), timeout_s=0.1))
    await until(lambda: gate.num_waiting == 2)
    with pytest.raises(errors.DeadlineExceededError):
        await late
    asked[2].cancel()
    await engine.close()
    with pytest.raises(asyncio.CancelledError):
        await asked[2]
    gate.opened.set()
    await asyncio.gather(*asked, return_exceptions=True)


LONG = "Be good. " * 10
LIGHT = {"prompt": "2+2?", "response": "It is 4."}


@pytest.mark.parametrize(
    ("scorer", "options", "light"),
    [
        ("treg", {}, True),
        ("treg", {"temperature": 0.75}, True),
        ("treg", {"better": LONG}, False),
        ("treg", {"worse": LONG}, False),
        ("generative", {"mode": "yes_minus_no"}, True),
        ("generative", {"template": "{{ response }}" * 3}, False),
        ("generative", {"template": "{{response}}?"}, True),
        ("generative", {"chat_template_kwargs": {"documents": [LONG]}}, False),
        ("generative", {"yes": ["Y", "y"] * 10}, False),
        ("theirs", {}, False),
    ],
)
async def test_a_request_with_texts_among_its_options_is_not_made_ready_on_the_event_loop(
    make_engine: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
    options: dict[str, Any],
    light: bool,
) -> None:
    chosen_by_operator = {"type": "treg", "name": "theirs", "options": {"worse": LONG}}
    spelled = {"type": "generative", "options": {"yes": ["Y"], "no": ["N"]}}
    engine = make_engine("causal_lm", ["treg", spelled, chosen_by_operator])
    threads: list[threading.Thread] = []

    def noted(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return JOBS(*arguments)

    monkeypatch.setattr(Preprocessor, "jobs", noted)
    await engine.score(
        parse(RewardsRequest, {"scorer": scorer, "items": [LIGHT], "options": options})
    )
    assert [thread is threading.current_thread() for thread in threads] == [light]


@pytest.mark.parametrize("timeout_s", [None, 0.3])
async def test_items_of_a_caller_who_is_gone_or_too_late_are_not_tokenised_any_more(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, timeout_s: float | None
) -> None:
    engine = make_engine("causal_lm", ["endogenous"])
    begun, ended = threading.Event(), threading.Event()
    prepared: list[int] = []

    def read(self: Preprocessor, job: Any, *arguments: Any) -> Any:
        prepared.append(job.index)
        begun.set()
        assert ended.wait(30)
        raise errors.EmptyResponse("", param="")

    monkeypatch.setattr(Preprocessor, "_read", read)
    asking = asyncio.create_task(engine.score(request(10), timeout_s=timeout_s))
    await until(begun.is_set)
    if timeout_s is None:
        asking.cancel()
    with pytest.raises(
        asyncio.CancelledError if timeout_s is None else errors.DeadlineExceededError
    ):
        await asking
    ended.set()
    await asyncio.to_thread(engine.preprocess.threads.close, wait=True)
    assert prepared == [0]


@pytest.mark.parametrize("num_characters", [10, 10_000])
async def test_a_template_of_the_caller_is_compiled_on_another_thread_and_not_if_the_queue_is_full(
    make_engine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, num_characters: int
) -> None:
    spelled = {"type": "generative", "options": {"yes": ["Y"], "no": ["N"]}}
    engine = make_engine("causal_lm", [spelled, "endogenous"])
    threads: list[threading.Thread] = []
    make = template.Template.__init__

    def noted(self: Any, text: str) -> None:
        threads.append(threading.current_thread())
        make(self, text)

    monkeypatch.setattr(template.Template, "__init__", noted)
    text = "a" * (100 + num_characters) + "{{ response }}"
    body = {"scorer": "generative", "items": [LIGHT], "options": {"template": text}}
    monkeypatch.setattr(engine.preprocess, "num_tokens", 10**9)
    with pytest.raises(errors.Overloaded):
        await engine.score(parse(RewardsRequest, body))
    assert threads == []
    monkeypatch.setattr(engine.preprocess, "num_tokens", 0)
    await engine.score(parse(RewardsRequest, body))
    assert threads
    assert threading.current_thread() not in threads


def test_counting_what_a_request_may_have_ends_at_the_limit() -> None:
    """Thousands of items may share one text of megabytes: on the event loop they took a minute."""
    num_counted = 0

    class Text(str):
        def encode(self, *_: Any) -> bytes:
            nonlocal num_counted
            num_counted += 1
            return super().encode()

    items = [Item(prompt="", response="b")] * 50
    batch = RewardsRequest(scorer="x", items=[*items])
    for item in batch.items:
        object.__setattr__(item, "prompt", Text("a" * 99))
    assert not may_have_more_tokens(batch, 5000)
    assert num_counted == 50
    assert may_have_more_tokens(batch, 4999)
    num_counted = 0
    assert may_have_more_tokens(batch, 250)
    assert num_counted <= 3


def test_long_numbers_of_options_count_as_texts() -> None:
    """They become texts in order to be measured, each in a quarter of a millisecond."""
    items = [{"prompt": "a", "response": "b"}]
    few = parse(RewardsRequest, {"scorer": "x", "items": items, "options": {"a": [10**300] * 9}})
    refuse_long_options(few)
    many = {"a": {"b": [10**4000] * 1000}}
    with pytest.raises(errors.InvalidField, match="the limit is"):
        refuse_long_options(parse(RewardsRequest, {"scorer": "x", "items": items, "options": many}))
