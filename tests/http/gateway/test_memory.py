"""How many bytes the gateway holds while deployments are asked: bodies, what is made of them, and
replies."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from fakes.scripted import answers, reply
from fakes.web import until
from tokenreward.errors import InvalidField, Overloaded
from tokenreward.http.request_limits import Limits
from tokenreward.wire.paths import HOLD_HEADER

ITEM = {"prompt": "a", "response": "b" * 200}
BOTH = {"scorers": ["one", "two"], "items": [ITEM]}


@pytest.mark.parametrize(
    ("names", "num_copies"), [({"scorer": "one"}, 1), ({"scorers": ["one", "two"]}, 3)], ids=str
)
async def test_a_body_and_what_is_made_of_it_are_held_as_long_as_the_deployments_are_asked(
    edge: Any, gateway: Any, names: dict[str, Any], num_copies: int
) -> None:
    num_held: list[int] = []

    async def answer(_: Request) -> Response:
        num_held.append(gateway.backend.bodies.num_held)
        return JSONResponse({"error": Overloaded("full").detail()}, 503)

    edge.answer = answer
    body = json.dumps({**names, "items": [ITEM]}).encode()
    async with gateway(edge.url) as opened:
        await opened.post("/v1/rewards", content=body)
        if num_copies == 1:
            assert num_held == [len(body)]
        else:  # beside the two, the bodies of the sub-requests
            assert min(num_held) >= num_copies * len(body) + min(map(len, edge.bodies))
        assert gateway.backend.bodies.num_held == 0


def one_then_two(num_rewards: int, may_answer: threading.Event) -> Any:
    """`lm` has so many rewards at once, and `rm` a single one as soon as it may answer."""

    async def rm(_: Request) -> Any:
        await until(may_answer.is_set)
        return reply([{"scorers": {"two": {"rewards": [1.0]}}}])

    return answers(lm=reply([{"scorers": {"one": {"rewards": [0.25] * num_rewards}}}]), rm=rm)


def small_memory(*, max_body_bytes: int) -> Limits:
    return Limits(
        max_body_bytes=max_body_bytes,
        max_request_items=8,
        request_timeout_s=20,
        max_body_memory_bytes=10_000,
    )


async def test_a_reply_that_does_not_fit_beside_others_is_refused_and_one_alone_is_not(
    edge: Any, gateway: Any
) -> None:
    """One caller's large reply is held while its other deployment is waited for."""
    may_answer = threading.Event()
    edge.answer = one_then_two(10_000, may_answer)
    limits = small_memory(max_body_bytes=1000)
    async with gateway(edge.url, limits=limits) as opened:
        bodies = gateway.backend.bodies
        first = asyncio.create_task(opened.post("/v1/rewards", json=BOTH))
        await until(lambda: bodies.num_held > 10_000)
        refused = await opened.post("/v1/rewards", json={"scorer": "one", "items": [ITEM]})
        assert refused.status_code == 503
        may_answer.set()
        assert (await first).status_code == 200
        await until(lambda: bodies.num_held == 0)
        alone = await opened.post("/v1/rewards", json={"scorer": "one", "items": [ITEM]})
        assert alone.status_code == 200
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("overloaded", "1")


async def test_a_plain_callers_request_waits_for_the_room_that_its_copies_need(
    edge: Any, gateway: Any
) -> None:
    """Its body has room beside another caller's reply, and what is made of it has not."""
    may_answer = threading.Event()
    edge.answer = one_then_two(600, may_answer)
    limits = small_memory(max_body_bytes=5000)
    body = {**BOTH, "items": [{**ITEM, "prompt": "a" * 3700}]}
    async with gateway(edge.url, limits=limits) as opened:
        bodies = gateway.backend.bodies
        first = asyncio.create_task(opened.post("/v1/rewards", json=BOTH))
        await until(lambda: 3500 < bodies.num_held < 6000)
        num_held = bodies.num_held
        refused = await opened.post("/v1/rewards", json=body)
        assert (refused.status_code, bodies.num_held) == (503, num_held)
        held = {HOLD_HEADER: "1000"}
        second = asyncio.create_task(opened.post("/v1/rewards", json=body, headers=held))
        await asyncio.wait({second}, timeout=0.5)
        assert not second.done()
        assert bodies.num_held - num_held < 4500  # of the second one the body and nothing else
        may_answer.set()
        assert (await first).status_code == 200
        assert (await second).status_code == 200
        await until(lambda: bodies.num_held == 0)


async def test_a_call_that_nobody_waits_for_any_more_gives_back_what_it_held(
    edge: Any, gateway: Any
) -> None:
    """Of two scorers that are asked first, one refuses while the reply of the other arrives."""
    has_ended = False

    async def lm(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            nonlocal has_ended
            yield b'{"items": ['
            yield b" " * 50_000
            try:
                await asyncio.sleep(20)
            finally:
                has_ended = True

        return StreamingResponse(pieces(), media_type="application/json")

    async def rm(_: Request) -> Response:
        await until(lambda: gateway.backend.bodies.num_held > 50_000)
        return JSONResponse({"error": InvalidField("no", param="items").detail()}, 422)

    edge.answer = answers(lm=lm, rm=rm)
    body = {
        "scorer": "one",
        "items": [{"prompt": [5], "response": [6, 7], "policy_logprobs": [-1.0, -1.0]}],
        "options": {"score_from": "two"},
        "credit": {"name": "last", "kl": {"coef": 0.1, "reference": "endogenous"}},
    }
    async with gateway(edge.url) as opened:
        bodies = gateway.backend.bodies
        answer = await opened.post("/v1/rewards", json=body)
        assert answer.status_code == 422
        assert bodies.num_held == 0
        await until(lambda: has_ended)
        await asyncio.sleep(0.05)
        assert bodies.num_held == 0
