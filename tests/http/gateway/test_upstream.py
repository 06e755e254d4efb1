"""What the gateway sends to a deployment and what it makes of the answers, with a deployment that a
test scripts."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fakes import web
from fakes.scripted import LOG_PROBS, answers, reply
from fakes.web import until
from tokenreward.errors import DeadlineExceededError, Overloaded
from tokenreward.http.upstream import UpstreamCall, Upstreams

BODY = b'{"scorer" : "one",\n "items": [{"prompt": "a", "response": "b"}], "unknown": 1e400}'
FOREIGN = [
    PlainTextResponse("the proxy says no"),
    JSONResponse({"detail": "the proxy says no"}),
    JSONResponse(["the proxy says no"]),
    Response(b"{", media_type="application/json"),
]


async def test_bytes_pass_through_unchanged_with_id_key_and_what_is_left_of_the_deadline(
    edge: Any, client: Any
) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"echo": [1.5]}, 200)

    edge.answer = answer
    headers = {
        "x-request-id": "mine",
        "authorization": "Bearer k",
        "x-request-timeout-seconds": "10",
        "cookie": "a=b",
    }
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


async def test_bodies_are_let_go_with_the_answer_and_not_with_the_next_search_for_garbage(
    edge: Any, client: Any
) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({})

    edge.answer = answer
    gc.collect()
    gc.disable()
    try:
        async with client() as opened:
            for _ in range(3):
                await opened.post("/v1/rewards", content=BODY)
        forwarded = [
            each
            for each in gc.get_objects()
            if type(each) is httpx.Request and "/d/lm" in each.url.path
        ]
    finally:
        gc.enable()
    assert len(edge.bodies) == 3
    assert forwarded == []


@pytest.mark.parametrize("names", [{"scorer": "one"}, {"scorers": ["one", "two"]}], ids=str)
async def test_a_body_holds_its_share_of_the_memory_as_long_as_the_deployments_are_asked(
    edge: Any, gateway: Any, names: dict[str, Any]
) -> None:
    held: list[int] = []

    async def answer(_: Request) -> Response:
        held.append(gateway.backend.bodies.num_held)
        return JSONResponse({"error": Overloaded("full").detail()}, 503)

    edge.answer = answer
    body = json.dumps({**names, "items": [{"prompt": "a", "response": "b"}]}).encode()
    async with gateway(edge.url) as opened:
        await opened.post("/v1/rewards", content=body)
        assert set(held) == {len(body)}
        assert gateway.backend.bodies.num_held == 0


async def test_refusal_passes_through_with_its_retry_after(edge: Any, client: Any) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse(
            {"error": Overloaded("full").detail()}, 503, headers={"retry-after": "7"}
        )

    edge.answer = answer
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize("reply", FOREIGN, ids=["text", "object", "list", "broken"])
@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (408, 504, "deadline_exceeded"),
        (404, 503, "loading"),
        (503, 503, "loading"),
        (500, 500, "internal"),
    ],
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


async def hang(request: Request) -> Response:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (PlainTextResponse("no replica", 500), True),
        (PlainTextResponse("no replica", 503), True),
        (PlainTextResponse("no replica", 404), True),
        (PlainTextResponse("too late", 408), True),
        ("silence", True),
        ("no connection", True),
        (JSONResponse({"error": Overloaded("full").detail()}, 503), False),
        (JSONResponse({}), False),
    ],
    ids=["500", "503", "404", "408", "silence", "no connection", "our own 503", "200"],
)
async def test_deployment_is_asked_whether_it_is_ready_after_it_failed_to_answer_and_not_before(
    edge: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, failure: Response | str, again: bool
) -> None:
    monkeypatch.setattr("tokenreward.http.upstream._READY_STANDS_S", 0.0)

    async def answer(request: Request) -> Response:
        return failure if isinstance(failure, Response) else await hang(request)

    edge.answer = answer
    url = f"http://127.0.0.1:{web.free_port()}" if failure == "no connection" else edge.url
    async with gateway(url) as opened:
        for _ in range(3):
            await opened.post(
                "/v1/rewards", content=BODY, headers={"x-request-timeout-seconds": "0.3"}
            )
        assert len(gateway.probes) == (3 if again else 1)


async def test_waiting_for_word_of_readiness_is_part_of_the_deadline(edge: Any) -> None:
    async def never(_: str) -> bool:
        await asyncio.sleep(5)
        return True

    async with httpx.AsyncClient(base_url=edge.url) as inner:
        call = UpstreamCall(Upstreams(inner, never), headers={"x-request-id": "mine"}, limit_s=0.2)
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await call.post("lm", BODY)
    assert time.monotonic() - began < 2
    assert edge.requests == []


async def test_a_deployment_that_does_not_list_its_scorers_in_time_is_unavailable(
    edge: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.http.gateway._LISTING_S", 0.3)
    entry = {"name": "two", "tokenizer": "t"}

    async def answer(request: Request) -> Response:
        return (
            await hang(request)
            if "/d/lm/" in request.url.path
            else JSONResponse({"scorers": [entry]})
        )

    edge.listing = None
    edge.answer = answer
    async with client() as opened:
        began = time.monotonic()
        listed = await opened.get("/v1/scorers")
        assert time.monotonic() - began < 3
    assert (listed.status_code, listed.json()) == (200, {"scorers": [entry], "unavailable": ["lm"]})


async def test_deployment_that_never_answers_costs_the_deadline_and_not_more(
    edge: Any, client: Any
) -> None:
    async def answer(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        edge.hung_up = True
        return Response()

    edge.answer = answer
    async with client() as opened:
        response = await opened.post(
            "/v1/rewards", content=BODY, headers={"x-request-timeout-seconds": "0.5"}
        )
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


async def test_refused_connection_is_an_internal_error(gateway: Any) -> None:
    async with gateway(f"http://127.0.0.1:{web.free_port()}") as opened:
        response = await opened.post("/v1/rewards", content=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")


async def test_ids_of_two_tokenizers_cannot_be_combined(edge: Any, client: Any) -> None:
    async def answer(request: Request) -> Response:
        name = "one" if "/d/lm/" in request.url.path else "two"
        return JSONResponse({"scorers": [{"name": name, "tokenizer": f"fingerprint-{name}"}]})

    edge.listing = None
    edge.answer = answer
    item = {"prompt": [1], "response": [2]}
    body = {"scorers": ["one", "two"], "combine": {"one": 1.0, "two": 1.0}, "items": [item]}
    async with client() as opened:
        response = await opened.post("/v1/rewards", content=json.dumps(body).encode())
    assert (response.status_code, response.json()["error"]["code"]) == (422, "units_differ")
    assert all(request.method == "GET" for request in edge.requests)


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_deployment_that_fails_now_gives_retryable_results(
    edge: Any, client: Any, status: int
) -> None:
    async def answer(request: Request) -> Response:
        if "/d/rm/" in request.url.path:
            return JSONResponse(
                {"error": {"code": "c", "message": "m", "param": None, "retryable": True}}, status
            )
        result = {"rewards": [1.0], "score": 1.0, "error": None, "model": "m", "version": 1}
        usage, timing = (
            dict.fromkeys(("prompt_tokens", "response_tokens"), 1),
            dict.fromkeys(("queue_s", "tokenize_s", "compute_s"), 0.5),
        )
        return JSONResponse(
            {"items": [{"index": 0, "scorers": {"one": result}}], "usage": usage, "timing": timing}
        )

    edge.answer = answer
    body = {"scorers": ["two", "one"], "items": [{"prompt": "a", "response": "b"}]}
    async with client() as opened:
        reply = (await opened.post("/v1/rewards", content=json.dumps(body).encode())).json()
    results = reply["items"][0]["scorers"]
    assert list(results) == ["two", "one"]
    assert results["one"]["rewards"] == [1.0]
    assert results["two"]["rewards"] is None
    assert results["two"]["error"] == {
        "code": "c",
        "message": "m",
        "param": None,
        "retryable": True,
    }


ITEM = {"prompt": "a", "response": "bc", "spans": [[0, 1], [1, 2]], "policy_logprobs": [-1.0, -1.0]}
KL = {"kl": {"coef": 1.0, "reference": "endogenous"}}


async def test_what_a_reference_told_is_filled_in_and_its_stages_count_but_not_its_tokens(
    edge: Any, client: Any
) -> None:
    told = reply([{"rewards": LOG_PROBS}] * 2, seconds=0.25, model="ref", version=7)
    edge.answer = answers(
        lm=told, rm=reply([{"rewards": [1.0, 2.0], "score": 3.0}] * 2, scorer="two")
    )
    async with client() as opened:
        response = await opened.post(
            "/v1/rewards", json={"scorer": "two", "items": [ITEM] * 2, "credit": KL}
        )
    got = response.json()
    assert [item["rewards"] for item in got["items"]] == [[1.0, 2.0]] * 2
    assert got["usage"] == {"prompt_tokens": 2, "response_tokens": 2}
    assert got["timing"] == {"queue_s": 0.75, "tokenize_s": 0.75, "compute_s": 0.75}
    assert (got["model"], got["version"]) == ("m", 1)
    assert got["sources"] == {"endogenous": {"model": "ref", "version": 7}}
    assert [item["ref_logprobs"] for item in json.loads(edge.bodies[1])["items"]] == [
        [-2.0, -3.0]
    ] * 2


async def test_time_that_a_reference_took_is_gone_for_the_scorer(edge: Any, client: Any) -> None:
    async def slowly(_: Request) -> Any:
        await asyncio.sleep(0.4)
        return reply([{"rewards": LOG_PROBS}])

    edge.answer = answers(lm=slowly, rm=reply([{"rewards": [1.0, 2.0]}]))
    async with client() as opened:
        body = {"scorer": "two", "items": [ITEM], "credit": KL}
        await opened.post("/v1/rewards", json=body, headers={"x-request-timeout-seconds": "10"})
        late = await opened.post(
            "/v1/rewards", json=body, headers={"x-request-timeout-seconds": "0.3"}
        )
    first, second, *rest = (
        float(request.headers["x-request-timeout-seconds"]) for request in edge.requests
    )
    assert 0.4 <= first - second < 5
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert late.json()["error"]["message"].startswith("reference `endogenous`: ")
    assert len(rest) == 1


NO_REPLIES = [
    {"echo": [1.5]},
    [1],
    None,
    {**reply([{"rewards": LOG_PROBS, "score": 1.0}]), "items": None},
    {**reply([{"rewards": LOG_PROBS, "score": 1.0}]), "usage": {}},
    {
        **reply([{"rewards": LOG_PROBS, "score": 1.0}]),
        "timing": {"queue_s": "1", "tokenize_s": [], "compute_s": 0},
    },
    reply([]),
    reply([{"rewards": LOG_PROBS, "score": 1.0}] * 2),
    reply([{"rewards": LOG_PROBS, "index": 1}]),
    reply([{"rewards": LOG_PROBS, "index": "0"}]),
    reply([{"error": "text"}]),
    reply([{"scorers": {"three": {"rewards": [1.0]}}}]),
    reply([{"scorers": [1]}]),
    reply([{"rewards": "!"}]),
    reply([{"rewards": [1.0]}]),
    reply([{}]),
]


@pytest.mark.parametrize("said", NO_REPLIES, ids=range(len(NO_REPLIES)))
async def test_json_that_is_no_reply_is_an_internal_error_that_names_the_deployment(
    edge: Any, client: Any, said: Any
) -> None:
    one = reply([{"scorers": {"one": {"rewards": [1.0], "score": 1.0, "error": None}}}])
    async with client() as opened:
        edge.answer = answers(lm=one, rm=said)
        both = await opened.post("/v1/rewards", json={"scorers": ["one", "two"], "items": [ITEM]})
        edge.answer = answers(lm=said, rm=reply([{"rewards": [1.0, 2.0]}]))
        reference = await opened.post(
            "/v1/rewards", json={"scorer": "two", "items": [ITEM], "credit": KL}
        )
    results = both.json()["items"][0]["scorers"]
    assert results["one"]["rewards"] == [1.0]
    assert (results["two"]["error"]["code"], results["two"]["error"]["retryable"]) == (
        "internal",
        True,
    )
    assert "`rm` answered 200 with a body that is no reply" in results["two"]["error"]["message"]
    assert (reference.status_code, reference.json()["error"]["code"]) == (500, "internal")
    assert "`lm` answered 200 with a body that is no reply" in reference.json()["error"]["message"]


@pytest.mark.parametrize(
    "said", [{"echo": 1}, {"scorers": [{"name": "one"}]}, {"scorers": 3}, [1]], ids=repr
)
async def test_json_that_is_no_listing_is_an_internal_error_that_names_the_deployment(
    edge: Any, client: Any, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    edge.listing = None
    edge.answer = answers(lm=said, rm={"scorers": [{"name": "two", "tokenizer": "t"}]})
    async with client() as opened:
        listed = await opened.get("/v1/scorers")
        body = {"scorer": "two", "items": [{"prompt": [1], "response": [2]}], "credit": KL}
        units = await opened.post("/v1/rewards", json=body)
    message = "`lm` answered 200 with a body that lists no scorers"
    assert (units.status_code, units.json()["error"]["code"]) == (500, "internal")
    assert message in units.json()["error"]["message"]
    assert (listed.status_code, listed.json()["unavailable"]) == (200, ["lm"])
    assert message in caplog.text


@pytest.mark.parametrize(
    "names", [{"scorer": "two"}, {"scorers": ["two", "one"]}], ids=["single", "keyed"]
)
@pytest.mark.parametrize("status", [413, 422])
async def test_refusal_of_a_reference_refuses_the_request_in_the_callers_words(
    edge: Any, client: Any, names: dict[str, Any], status: int
) -> None:
    error = {
        "code": "c",
        "message": "`items[1].prompt` is odd",
        "param": "items[1].prompt",
        "retryable": False,
    }
    edge.answer = answers(lm=JSONResponse({"error": error}, status), rm=reply([]))
    credit = KL if "scorer" in names else {"two": KL}
    async with client() as opened:
        response = await opened.post(
            "/v1/rewards", json={**names, "items": [ITEM] * 2, "credit": credit}
        )
    assert response.status_code == status
    assert response.json()["error"]["message"] == "reference `endogenous`: `items[1].prompt` is odd"
    assert response.json()["error"]["param"] == "items[1].prompt"


async def test_refusal_of_a_shortened_request_counts_the_callers_items(
    edge: Any, client: Any
) -> None:
    long = {
        "error": {
            "code": "sequence_too_long",
            "message": "it is too long",
            "param": "items[0].response",
        }
    }
    odd = {
        "code": "invalid_field",
        "message": "it is odd",
        "param": "items[1].prompt",
    }
    edge.answer = answers(
        lm=reply([{"rewards": None, **long}, {"rewards": LOG_PROBS}, {"rewards": LOG_PROBS}]),
        rm=JSONResponse({"error": {**odd, "retryable": False}}, 422),
    )
    async with client() as opened:
        response = await opened.post(
            "/v1/rewards", json={"scorer": "two", "items": [ITEM] * 3, "credit": KL}
        )
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "items[2].prompt"
    assert response.json()["error"]["message"] == "it is odd"


async def test_caller_who_hangs_up_is_passed_on_to_the_reference(edge: Any, client: Any) -> None:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def waiting(request: Request) -> Response:
        loop.call_soon_threadsafe(reached.set)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        edge.hung_up = True
        return Response()

    edge.answer = answers(lm=waiting, rm=reply([]))
    async with client() as opened:
        body = {"scorers": ["two", "one"], "items": [ITEM], "credit": {"two": KL, "one": KL}}
        asking = asyncio.create_task(opened.post("/v1/rewards", json=body))
        await asyncio.wait_for(reached.wait(), 5)
        asking.cancel()
        await until(lambda: edge.hung_up)
    assert len(edge.requests) == 1
