"""What the front sends to a deployment and what it makes of the answers, with a deployment that a test scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

import web
from tokenreward.errors import Overloaded
from web import until

BODY = b'{"scorer" : "one",\n "items": [{"prompt": "a", "response": "b"}], "unknown": 1e400}'
FOREIGN = [
    PlainTextResponse("the proxy says no"),
    JSONResponse({"detail": "the proxy says no"}),
    JSONResponse(["the proxy says no"]),
    Response(b"{", media_type="application/json"),
]
Answering = Callable[[Request], Awaitable[Response]]


class Edge:
    """A deployment whose answer the test writes."""

    def __init__(self) -> None:
        self.answer: Answering | None = None
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.hung_up = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        self.requests.append(request)
        self.bodies.append(await request.body())
        assert self.answer is not None
        response = await self.answer(request)
        await response(scope, receive, send)


@pytest.fixture
def edge() -> Iterator[Edge]:
    edge = Edge()
    with web.serving(edge) as edge.url:  # type: ignore[attr-defined]
        yield edge


@pytest.fixture
def client(front: Any, edge: Any) -> Callable[[], Any]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[httpx.AsyncClient]:
        async with front(edge.url) as client:
            yield client

    return opened


async def test_bytes_pass_through_unchanged_with_id_key_and_what_is_left_of_the_deadline(
    edge: Any, client: Any
) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"echo": [1.5]}, 200)

    edge.answer = answer
    headers = {"x-request-id": "mine", "authorization": "Bearer k", "x-request-timeout-seconds": "10", "cookie": "a=b"}
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=BODY, headers=headers)
    assert response.content == b'{"echo":[1.5]}'
    assert edge.bodies == [BODY]
    (request,) = edge.requests
    assert request.url.path == "/d/lm/v1/rewards"
    assert request.headers["x-request-id"] == "mine"
    assert request.headers["authorization"] == "Bearer k"
    assert 5 < float(request.headers["x-request-timeout-seconds"]) < 10
    assert "cookie" not in request.headers


async def test_refusal_passes_through_with_its_retry_after(edge: Any, client: Any) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"error": Overloaded("full").detail()}, 503, headers={"retry-after": "7"})

    edge.answer = answer
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize("reply", FOREIGN, ids=["text", "object", "list", "broken"])
@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [(408, 504, "deadline_exceeded"), (404, 503, "loading"), (503, 503, "loading"), (500, 500, "internal")],
)
async def test_answer_that_is_not_ours_becomes_our_error(
    edge: Any, client: Any, status: int, expected: int, code: str, reply: Response
) -> None:
    async def answer(_: Request) -> Response:
        return Response(reply.body, status, media_type=reply.media_type)

    edge.answer = answer
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=BODY)
        two = {"scorers": ["one", "two"], "items": [{"prompt": "a", "response": "b"}]}
        both = await opened.post("/v1/rewards", json=two)
    assert (response.status_code, response.json()["error"]["code"]) == (expected, code)
    assert response.json()["error"]["retryable"] is True
    assert both.status_code == 200
    for result in both.json()["items"][0]["scorers"].values():
        assert (result["error"]["code"], result["error"]["retryable"]) == (code, True)


async def test_deployment_is_asked_again_after_it_could_not_answer(
    edge: Any, client: Any, front: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.gateway.upstream._READY_STANDS_S", 0.0)

    statuses = iter((500, 503, 500, 500))

    async def answer(_: Request) -> Response:
        return PlainTextResponse("no replica", next(statuses))

    edge.answer = answer
    async with client() as opened:
        for num_asked in (1, 1, 2, 2):
            await opened.post("/v1/rewards", content=BODY)
            assert len(front.asked) == num_asked


async def test_deployment_that_never_answers_costs_the_deadline_and_not_more(edge: Any, client: Any) -> None:
    async def answer(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        edge.hung_up = True
        return Response()

    edge.answer = answer
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=BODY, headers={"x-request-timeout-seconds": "0.5"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    await until(lambda: edge.hung_up)


async def test_caller_who_hangs_up_is_passed_on(edge: Any, client: Any) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def answer(request: Request) -> Response:
        loop.call_soon_threadsafe(reached.set)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        edge.hung_up = True
        return Response()

    edge.answer = answer
    async with client() as opened:
        asking = asyncio.create_task(opened.post("/v1/rewards", content=BODY))
        await asyncio.wait_for(reached.wait(), 5)
        asking.cancel()
        await until(lambda: edge.hung_up)


async def test_refused_connection_is_an_internal_error(front: Any) -> None:
    async with front(f"http://127.0.0.1:{web.free_port()}") as opened:
        response = await opened.post("/v1/rewards", content=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


async def test_ids_of_two_tokenizers_cannot_be_combined(edge: Any, client: Any) -> None:
    async def answer(request: Request) -> Response:
        name = "one" if "/d/lm/" in request.url.path else "two"
        return JSONResponse({"scorers": [{"name": name, "tokenizer": f"fingerprint-{name}"}]})

    edge.answer = answer
    item = {"prompt": [1], "response": [2]}
    body = {"scorers": ["one", "two"], "combine": {"one": 1.0, "two": 1.0}, "items": [item]}
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=json.dumps(body).encode())
    assert (response.status_code, response.json()["error"]["code"]) == (422, "units_differ")
    assert all(request.method == "GET" for request in edge.requests)


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_deployment_that_fails_now_gives_retryable_results(edge: Any, client: Any, status: int) -> None:
    async def answer(request: Request) -> Response:
        if "/d/rm/" in request.url.path:
            return JSONResponse({"error": {"code": "c", "message": "m", "param": None, "retryable": True}}, status)
        result = {"rewards": [1.0], "score": 1.0, "error": None, "model": "m", "version": 1}
        usage, timing = (
            dict.fromkeys(("prompt_tokens", "response_tokens"), 1),
            dict.fromkeys(("queue_s", "tokenize_s", "compute_s"), 0.5),
        )
        return JSONResponse({"items": [{"index": 0, "scorers": {"one": result}}], "usage": usage, "timing": timing})

    edge.answer = answer
    body = {"scorers": ["two", "one"], "items": [{"prompt": "a", "response": "b"}]}
    async with client() as opened:
        reply = (await opened.post("/v1/rewards", content=json.dumps(body).encode())).json()
    results = reply["items"][0]["scorers"]
    assert list(results) == ["two", "one"]
    assert results["one"]["rewards"] == [1.0]
    assert results["two"]["rewards"] is None
    assert results["two"]["error"] == {"code": "c", "message": "m", "param": None, "retryable": True}
