"""Requests that are held: in turns, until one moment, by the gateway or the replica and not by
both, and no longer than their callers are there."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from fakes.scripted import reply
from fakes.web import until
from tokenreward.errors import InternalError, InvalidField, Loading, Overloaded
from tokenreward.http import held_requests
from tokenreward.http.body import BodyBudget
from tokenreward.http.held_requests import HeldRequests
from tokenreward.http.patience import patience_ends
from tokenreward.http.scope import IncomingRequest
from tokenreward.wire.paths import HOLD_HEADER, REWARDS_PATH

ITEM = {"prompt": [5], "response": [6, 7]}
BODY = {"scorer": "one", "items": [ITEM]}
HELD = {HOLD_HEADER: "1000"}


class Service:
    """Has room for requests of some size together, each of which takes a while, and refuses the
    others."""

    def __init__(self, room: int, work_s: float = 0.05) -> None:
        self.room, self.work_s = room, work_s
        self.num_tries = 0
        self.accepted: list[Any] = []

    def work(self, name: Any, size: int = 1) -> Callable[[], Any]:
        async def attempt() -> Any:
            self.num_tries += 1
            if self.room < size:
                raise Overloaded("full")
            self.room -= size
            self.accepted.append(name)
            try:
                await asyncio.sleep(self.work_s)
            finally:
                self.room += size
            return name

        return attempt


async def held(
    line: HeldRequests, service: Service, names: list[Any], caller: str = "", size: int = 1
) -> list[Any]:
    tasks = []
    for name in names:
        until_s = time.monotonic() + 20
        work = line.hold(service.work(name, size), give_up_at=until_s, caller=caller, size=size)
        tasks.append(asyncio.ensure_future(work))
        await asyncio.sleep(0)
    return tasks


async def dropped(tasks: list[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_full_line_refuses_at_once_and_loses_nobody_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_requests, "MAX_HELD", 3)
    line, service = HeldRequests(), Service(room=0)
    tasks = await held(line, service, list(range(3)))
    await asyncio.sleep(0.1)
    (late,) = await held(line, service, ["late"])
    with pytest.raises(Overloaded, match="3 requests wait"):
        await asyncio.wait_for(late, 1)
    service.room = 1
    assert await asyncio.gather(*tasks) == [0, 1, 2]


async def test_held_requests_are_served_in_order_of_arrival_and_a_new_one_stands_behind() -> None:
    line, service = HeldRequests(), Service(room=0)
    tasks = await held(line, service, list(range(10)))
    await asyncio.sleep(0.1)
    service.room = 1
    tasks += await held(line, service, ["late"])
    assert await asyncio.gather(*tasks) == [*range(10), "late"]
    assert service.accepted == [*range(10), "late"]
    assert line.num_waiting == 0


async def test_a_full_service_is_asked_by_one_of_many_at_a_time() -> None:
    line, service = HeldRequests(), Service(room=0)
    tasks = await held(line, service, list(range(100)))
    await asyncio.sleep(1.5)
    assert service.num_tries < 100 + 12  # each once, and then the first: 0.05, 0.1, 0.2 s ...
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert line.num_waiting == 0


async def test_the_next_one_follows_a_request_that_is_not_refused_before_that_is_answered() -> None:
    line, service = HeldRequests(), Service(room=0, work_s=5)
    tasks = await held(line, service, list(range(5)))
    service.room = 5
    await until(lambda: service.room == 0, seconds=3)
    assert service.accepted == list(range(5))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert service.room == 5  # what was under way has ended, too


async def test_a_caller_of_one_request_does_not_wait_for_all_of_anothers() -> None:
    line, service = HeldRequests(), Service(room=0)
    many = await held(line, service, [f"many-{number}" for number in range(20)], "many")
    one = await held(line, service, ["one"], "one")
    service.room = 1
    await asyncio.gather(*many, *one)
    assert service.accepted.index("one") <= 2


async def test_a_late_request_that_hangs_up_does_not_set_other_callers_back() -> None:
    line, service = HeldRequests(), Service(room=0)
    many = await held(line, service, list(range(20)), "many")
    await dropped([many.pop()])
    one = await held(line, service, ["one"], "one")
    service.room = 1
    await asyncio.gather(*many, *one)
    assert service.accepted.index("one") <= 2


async def test_a_request_that_is_held_keeps_nothing_of_its_tries() -> None:
    line = HeldRequests()
    engines: list[weakref.ref[Any]] = []

    async def refused() -> Any:
        engine = Service(room=0)
        engines.append(weakref.ref(engine))
        return await engine.work("held")()

    task = asyncio.ensure_future(line.hold(refused, give_up_at=time.monotonic() + 20))
    await until(lambda: len(engines) == 3, seconds=3)
    await asyncio.sleep(0)
    assert [engine() for engine in engines] == [None, None, None]
    await dropped([task])


async def test_small_requests_that_fit_pass_a_large_one() -> None:
    line, service = HeldRequests(), Service(room=0)
    large = await held(line, service, ["large"], size=10)
    small = await held(line, service, list(range(5)))
    service.room = 5
    assert await asyncio.wait_for(asyncio.gather(*small), 3) == list(range(5))
    assert service.accepted == list(range(5))
    service.room = 10
    assert await asyncio.wait_for(asyncio.gather(*large), 3) == ["large"]


async def test_what_passes_a_large_request_is_together_no_larger_than_itself() -> None:
    line, service = HeldRequests(), Service(room=0, work_s=0.01)
    large = await held(line, service, ["large"], size=10)
    small = await held(line, service, list(range(40)))
    service.room = 9  # never enough for the large one
    await until(lambda: len(service.accepted) == 10)
    await asyncio.sleep(0.3)
    assert service.accepted == list(range(10))
    service.room += 1
    assert await asyncio.wait_for(asyncio.gather(*large, *small), 5) == ["large", *range(40)]
    assert service.accepted[10] == "large"


async def test_a_large_request_among_a_stream_of_small_ones_is_served() -> None:
    line, service = HeldRequests(), Service(room=10, work_s=0.05)
    small: list[Any] = []

    async def stream() -> None:
        while True:
            small.extend(await held(line, service, ["small"], caller=f"caller {len(small)}"))
            await asyncio.sleep(0.004)  # more than there is room for

    streaming = asyncio.create_task(stream())
    await until(lambda: line.num_waiting > 5)
    (large,) = await held(line, service, ["large"], caller="one more", size=10)
    assert await asyncio.wait_for(large, 10) == "large"
    streaming.cancel()
    await dropped(small)
    assert line.num_waiting == 0


async def test_of_many_that_do_not_fit_a_few_are_tried_during_a_pause_and_the_smallest() -> None:
    line, service = HeldRequests(), Service(room=1)
    tasks = []
    for size in range(100, 1, -1):
        tasks += await held(line, service, [size], size=size)
    await asyncio.sleep(0.02)
    num_first = service.num_tries
    await asyncio.sleep(1.5)  # pauses of 0.05, 0.1, 0.2, 0.4 and 0.8 s
    assert service.num_tries - num_first < 7 * (1 + 8)
    (small,) = await held(line, service, ["small"])
    assert await asyncio.wait_for(small, 3) == "small"
    await dropped(tasks)


async def test_one_that_hangs_up_while_it_tries_to_pass_holds_up_nobody() -> None:
    line, service = HeldRequests(), Service(room=0)
    large = await held(line, service, ["large"], size=10)
    tried = asyncio.Event()

    async def stuck() -> Any:
        tried.set()
        await asyncio.sleep(30)

    work = line.hold(stuck, give_up_at=time.monotonic() + 20, size=1)
    passing = asyncio.create_task(work)
    small = await held(line, service, ["small"], size=1)
    await asyncio.wait_for(tried.wait(), 3)
    await dropped([passing])
    service.room = 1
    assert await asyncio.wait_for(small[0], 3) == "small"
    await dropped(large)


async def test_time_ends_a_wait_with_the_last_refusal_and_an_attempt() -> None:
    line, service = HeldRequests(), Service(room=0)
    began = time.monotonic()
    first = asyncio.ensure_future(line.hold(service.work("a"), give_up_at=began + 30))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        await line.hold(service.work("b"), give_up_at=began + 0.5)
    assert 0.3 < time.monotonic() - began < 2
    service.room = 1
    assert await first == "a"


@pytest.mark.parametrize(
    ("header", "patience_s"), [(None, 100.0), ("0", 0.0), ("7.5", 7.5), ("1e9", 100.0)]
)
def test_the_caller_may_shorten_the_patience_of_a_protocol(
    header: str | None, patience_s: float
) -> None:
    headers = {} if header is None else {HOLD_HEADER: header}
    now = time.monotonic()
    assert patience_ends(100.0, headers, deadline=now + 1000) == pytest.approx(
        now + patience_s, abs=0.1
    )
    assert patience_ends(100.0, headers, deadline=now + 1) < now + 1


@pytest.mark.parametrize("header", ["", "soon", "-1", "nan"])
def test_a_patience_that_is_no_number_of_seconds_is_refused(header: str) -> None:
    with pytest.raises(InvalidField) as refused:
        patience_ends(100.0, {HOLD_HEADER: header}, deadline=1000.0)
    assert refused.value.param == HOLD_HEADER


async def test_a_caller_who_hangs_up_while_its_body_waits_for_room_is_noticed() -> None:
    bodies = BodyBudget(10, max_body_bytes=10)
    gone = asyncio.Event()

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    scope = {"type": "http", "headers": [(b"content-length", b"8")]}

    async def holds(caller: IncomingRequest) -> None:
        async with bodies.body(scope, caller, within_s=20, give_up_at=time.monotonic() + 20):
            raise AssertionError

    async def whole() -> Any:
        return {"type": "http.request", "body": bytes(8)}

    async with bodies.body(dict(scope), IncomingRequest(whole), within_s=5):
        waiting = asyncio.ensure_future(holds(IncomingRequest(receive)))
        await asyncio.sleep(0.1)
        gone.set()
        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(waiting, 2)
    assert bodies.num_held == 0


async def test_a_body_whose_first_piece_came_while_it_waited_is_read_whole() -> None:
    pieces = [
        {"type": "http.request", "body": b"abc", "more_body": True},
        {"type": "http.request", "body": b"def"},
    ]

    async def receive() -> Any:
        if pieces:
            return pieces.pop(0)
        await asyncio.Event().wait()

    bodies = BodyBudget(8, max_body_bytes=8)
    scope = {"type": "http", "headers": [(b"content-length", b"6")]}

    async def whole() -> Any:
        return {"type": "http.request", "body": bytes(6)}

    async def read() -> bytes:
        until_s = time.monotonic() + 20
        async with bodies.body(
            scope, IncomingRequest(receive), within_s=20, give_up_at=until_s
        ) as body:
            return body

    async with bodies.body(dict(scope), IncomingRequest(whole), within_s=5):
        waiting = asyncio.ensure_future(read())
        await asyncio.sleep(0.1)
    assert await asyncio.wait_for(waiting, 2) == b"abcdef"


def refuses(edge: Any, times: int, error: Any = None) -> list[float]:
    """The edge refuses so many times, then answers. When it was asked."""
    asked: list[float] = []

    async def answer(_: Any) -> Response:
        asked.append(time.monotonic())
        if len(asked) <= times:
            refusal = error or Overloaded("full")
            return JSONResponse({"error": refusal.detail()}, refusal.status)
        return JSONResponse(reply([{"rewards": [1.0, 2.0]}], scorer="one"))

    edge.answer = answer
    return asked


@pytest.mark.parametrize("error", [Overloaded("full"), Loading("loading")])
async def test_a_plain_caller_of_the_gateway_does_not_meet_a_full_deployment(
    edge: Any, gateway: Any, error: Any
) -> None:
    asked = refuses(edge, 3, error)
    async with gateway(edge.url) as client:
        answer = await client.post(REWARDS_PATH, json=BODY, headers=HELD)
        assert gateway.backend.bodies.num_held == 0
    assert answer.status_code == 200
    assert len(asked) == 4
    # One of both holds.
    assert {request.headers[HOLD_HEADER] for request in edge.requests} == {"0"}


async def test_a_small_request_passes_a_large_one_that_its_deployment_refuses(
    edge: Any, gateway: Any
) -> None:
    is_full = True

    async def answer(request: Any) -> Response:
        if is_full and len(await request.body()) > 1000:
            return JSONResponse({"error": Overloaded("full").detail()}, 503)
        return JSONResponse(reply([{"rewards": [1.0, 2.0]}], scorer="one"))

    edge.answer = answer
    async with gateway(edge.url) as client:
        body = {"scorer": "one", "items": [{**ITEM, "prompt": [5] * 1000}]}
        large = asyncio.create_task(client.post(REWARDS_PATH, json=body, headers=HELD))
        await until(lambda: len(edge.requests) >= 2)
        small = await asyncio.wait_for(client.post(REWARDS_PATH, json=BODY, headers=HELD), 3)
        assert small.status_code == 200
        assert not large.done()
        is_full = False
        assert (await asyncio.wait_for(large, 5)).status_code == 200


async def test_a_caller_who_tries_again_by_itself_sees_the_refusal_at_once(
    edge: Any, gateway: Any
) -> None:
    asked = refuses(edge, 3)
    async with gateway(edge.url) as client:
        answer = await client.post(REWARDS_PATH, json=BODY, headers={HOLD_HEADER: "0"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert len(asked) == 1


async def test_each_scorer_of_a_request_is_held_by_itself(edge: Any, gateway: Any) -> None:
    tries = {"lm": 0, "rm": 0}

    async def answer(request: Any) -> Response:
        name = "lm" if "/d/lm/" in request.url.path else "rm"
        tries[name] += 1
        if name == "rm" and tries[name] <= 2:
            return JSONResponse({"error": Overloaded("full").detail()}, 503)
        scorer = "one" if name == "lm" else "two"
        return JSONResponse(reply([{"scorers": {scorer: {"rewards": [1.0, 2.0]}}}]))

    edge.answer = answer
    async with gateway(edge.url) as client:
        body = {"scorers": ["one", "two"], "items": [ITEM]}
        answered = await client.post(REWARDS_PATH, json=body, headers=HELD)
    assert answered.status_code == 200
    scorers = answered.json()["items"][0]["scorers"]
    assert scorers["two"]["rewards"] == [1.0, 2.0]
    assert tries == {"lm": 1, "rm": 3}


async def test_the_callers_deadline_ends_the_hold_with_the_deployments_own_refusal(
    edge: Any, gateway: Any
) -> None:
    refuses(edge, 1000)
    async with gateway(edge.url) as client:
        headers = {**HELD, "x-request-timeout-seconds": "1"}
        answer = await client.post(REWARDS_PATH, json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "full")


async def test_a_caller_who_hangs_up_is_held_no_longer(edge: Any, gateway: Any) -> None:
    asked = refuses(edge, 1000)
    async with gateway(edge.url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(REWARDS_PATH, json=BODY, headers=HELD, timeout=0.5)
        await until(lambda: gateway.backend.bodies.num_held == 0)
        num_asked = len(asked)
        await asyncio.sleep(1.2)
        assert len(asked) <= num_asked + 1


async def test_texts_of_who_hangs_up_are_tokenised_no_longer(edge: Any, gateway: Any) -> None:
    edge.answer = edge.hang
    async with gateway(edge.url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/tokenize", json={"prompt": "a"}, timeout=0.5)
        await until(lambda: bool(edge.hung_up))
        assert gateway.backend.bodies.num_held == 0


async def test_a_fault_of_a_deployment_is_tried_again_twice_for_a_plain_caller(
    edge: Any, gateway: Any
) -> None:
    asked = refuses(edge, 1000, InternalError("broken"))
    async with gateway(edge.url) as client:
        answer = await client.post(REWARDS_PATH, json=BODY, headers=HELD)
    assert answer.status_code == 500
    assert len(asked) == 3
