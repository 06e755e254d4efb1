"""What the gateway sends to a deployment and what it makes of the answers, with a deployment that a
test scripts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fakes import web
from fakes.scripted import LOG_PROBS, answers, reply
from fakes.web import until
from tokenreward.errors import DeadlineExceededError, Loading, Overloaded, RequestError
from tokenreward.http.gateway.upstream import UpstreamCall, Upstreams
from tokenreward.wire.paths import REQUEST_ID_HEADER

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


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        (PlainTextResponse("no replica", 500), True),
        (PlainTextResponse("no replica", 503), True),
        (PlainTextResponse("no replica", 404), True),
        (None, True),
        (JSONResponse({"error": Overloaded("full").detail()}, 503), False),
        (JSONResponse({}), False),
    ],
    ids=["500", "503", "404", "no connection", "our own 503", "200"],
)
async def test_deployment_is_asked_whether_it_is_ready_after_it_failed_to_answer_and_not_before(
    edge: Any, gateway: Any, monkeypatch: pytest.MonkeyPatch, failure: Response | None, again: bool
) -> None:
    monkeypatch.setattr("tokenreward.http.gateway.upstream._READY_STANDS_S", 0.0)
    edge.answer = answers(lm=failure, rm=None)
    url = f"http://127.0.0.1:{web.free_port()}" if failure is None else edge.url
    async with gateway(url) as opened:
        for _ in range(3):
            await opened.post("/v1/rewards", content=BODY)
        assert len(gateway.probes) == (3 if again else 1)


def call_of(upstreams: Upstreams, *, limit_s: float = 10) -> UpstreamCall:
    headers = {"x-request-id": "mine"}
    return UpstreamCall(upstreams, headers=headers, limit_s=limit_s, hold=lambda _: None)


@pytest.mark.parametrize("by_proxy", [False, True], ids=["silence", "408"])
async def test_a_callers_short_deadline_costs_nobody_else_the_readiness_or_the_listing(
    edge: Any, monkeypatch: pytest.MonkeyPatch, by_proxy: bool
) -> None:
    monkeypatch.setattr("tokenreward.http.gateway.upstream._READY_STANDS_S", 0.0)
    first, again = asyncio.Future[bool](), asyncio.Future[bool]()
    first.set_result(True)
    answers_in_turn = iter([first, again, again])

    async def has_ready(_: str) -> bool:
        return await next(answers_in_turn)

    edge.answer = answers(lm=PlainTextResponse("late", 408) if by_proxy else edge.hang, rm=None)
    async with httpx.AsyncClient(base_url=edge.url) as inner:
        upstreams = Upstreams(inner, has_ready)
        await call_of(upstreams).list_scorers("lm")
        with pytest.raises(DeadlineExceededError):
            await call_of(upstreams, limit_s=0.2).post("lm", BODY)
        edge.answer = answers(lm={}, rm=None)
        answer = await call_of(upstreams).post("lm", BODY)  # while nobody has said "ready" again
        assert (answer.status_code, list(upstreams.listings)) == (200, ["lm"])
        again.set_result(False)
        await until(lambda: not upstreams.listings)
        with pytest.raises(Loading):
            await call_of(upstreams).post("lm", BODY)


async def test_waiting_for_word_of_readiness_is_part_of_the_deadline(edge: Any) -> None:
    async def never(_: str) -> bool:
        await asyncio.sleep(5)
        return True

    async with httpx.AsyncClient(base_url=edge.url) as inner:
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await call_of(Upstreams(inner, never), limit_s=0.2).post("lm", BODY)
    assert time.monotonic() - began < 2
    assert edge.requests == []


async def test_a_deployment_that_does_not_list_its_scorers_in_time_is_unavailable(
    edge: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenreward.http.gateway.backend.LISTING_S", 0.3)
    entry = {"name": "two", "tokenizer": "t"}

    edge.listing = None
    edge.answer = answers(lm=edge.hang, rm={"scorers": [entry]})
    async with client() as opened:
        began = time.monotonic()
        listed = await opened.get("/v1/scorers")
        assert time.monotonic() - began < 3
    assert (listed.status_code, listed.json()) == (200, {"scorers": [entry], "unavailable": ["lm"]})


async def test_deployment_that_never_answers_costs_the_deadline_and_not_more(
    edge: Any, client: Any
) -> None:
    edge.answer = edge.hang
    async with client() as opened:
        response = await opened.post(
            "/v1/rewards", content=BODY, headers={"x-request-timeout-seconds": "0.5"}
        )
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    await until(lambda: edge.hung_up)


async def test_caller_who_hangs_up_is_passed_on(edge: Any, client: Any) -> None:
    edge.answer = edge.hang
    async with client() as opened:
        asking = asyncio.create_task(opened.post("/v1/rewards", content=BODY))
        await until(lambda: edge.is_waiting)
        asking.cancel()
        await until(lambda: edge.hung_up)


async def test_refused_connection_may_be_tried_again_as_nothing_was_sent(gateway: Any) -> None:
    async with gateway(f"http://127.0.0.1:{web.free_port()}") as opened:
        response = await opened.post("/v1/rewards", content=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")


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


@pytest.mark.parametrize(
    "names", [{"scorer": "two"}, {"scorers": ["two", "one"]}], ids=["single", "keyed"]
)
async def test_log_probs_of_another_length_are_the_references_fault_and_not_a_fields(
    edge: Any, client: Any, names: dict[str, Any]
) -> None:
    error = {
        "code": "length_mismatch",
        "message": "there are 2 entries, the response has 3 units",
        "param": "items[0].ref_logprobs",
    }
    is_keyed = "scorers" in names
    result = {"scorers": {"two": {"error": error}}} if is_keyed else {"error": error}
    log_probs = {"rewards": LOG_PROBS, "scorers": {"one": {"rewards": [1.0, 2.0]}}}
    edge.answer = answers(lm=reply([log_probs]), rm=reply([result]))
    body = {**names, "items": [ITEM], "credit": {"two": KL} if is_keyed else KL}
    async with client() as opened:
        (item,) = (await opened.post("/v1/rewards", json=body)).json()["items"]
    detail = (item["scorers"]["two"] if is_keyed else item)["error"]
    assert detail["code"] == "length_mismatch"
    assert detail["param"] == ("credit.two" if is_keyed else "credit") + ".kl.reference"
    assert detail["message"] == (
        "the reply of reference `endogenous` does not fit: there are 2 entries, the response has "
        "3 units; the two scorers read other tokens: send `spans`, which both count, or name "
        "another reference"
    )


async def test_log_probs_that_the_caller_sent_are_still_the_callers_field(
    edge: Any, client: Any
) -> None:
    error = {"code": "length_mismatch", "message": "m", "param": "items[0].ref_logprobs"}
    edge.answer = answers(lm=reply([{}]), rm=reply([{"scorers": {"two": {"error": error}}}]))
    body = {"scorers": ["two", "one"], "items": [{**ITEM, "ref_logprobs": [0.0]}]}
    async with client() as opened:
        response = await opened.post("/v1/rewards", json=body)
    detail = response.json()["items"][0]["scorers"]["two"]["error"]
    assert (detail["message"], detail["param"]) == ("m", "items[0].ref_logprobs")


async def test_a_dependency_without_a_score_is_counted_as_an_error_of_the_gateway(
    edge: Any, client: Any
) -> None:
    edge.answer = answers(lm=reply([{"score": 1.0}, {}, {}]), rm=reply([{"rewards": [1.0, 2.0]}]))
    body = {"scorer": "two", "items": [ITEM] * 3, "options": {"score_from": "endogenous"}}
    async with client() as opened:
        items = (await opened.post("/v1/rewards", json=body)).json()["items"]
        text = (await opened.get("/metrics")).text
    assert [item["error"] and item["error"]["message"] for item in items] == [
        None,
        *["score from `endogenous`: it gives no score"] * 2,
    ]
    labels = 'code="scorer_failed",deployment="gateway",replica="gateway-1"'
    assert f"tokenreward_errors_total{{{labels}}} 2.0" in text


async def test_caller_who_hangs_up_is_passed_on_to_the_reference(edge: Any, client: Any) -> None:
    edge.answer = answers(lm=edge.hang, rm=reply([]))
    async with client() as opened:
        body = {"scorers": ["two", "one"], "items": [ITEM], "credit": {"two": KL, "one": KL}}
        asking = asyncio.create_task(opened.post("/v1/rewards", json=body))
        await until(lambda: edge.is_waiting)
        asking.cancel()
        await until(lambda: edge.hung_up)
    assert len(edge.requests) == 1


class Breaking(httpx.AsyncByteStream):
    """An answer whose connection breaks on the way."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield bytes(1000)
        raise httpx.ReadError("reset")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, stream=Breaking()),
        httpx.Response(500, content=bytes(1000)),
        httpx.Response(503, json={"error": Overloaded("full").detail()}),
        None,  # there is no room for it
    ],
    ids=["broken", "of a proxy", "overloaded", "too large"],
)
async def test_an_attempt_that_fails_gives_back_the_bytes_that_it_held(
    answer: httpx.Response | None,
) -> None:
    holds = [0]

    def hold(num_bytes: int) -> None:
        if num_bytes > 5000:
            raise Overloaded("full")
        holds.append(holds[-1] + num_bytes)

    async def is_ready(deployment: str) -> bool:
        return True

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=bytes(6000)) if answer is None else answer

    transport = httpx.MockTransport(handle)
    async with httpx.AsyncClient(transport=transport, base_url="http://deployments") as opened:
        call = UpstreamCall(
            Upstreams(opened, is_ready), headers={REQUEST_ID_HEADER: "a"}, limit_s=5, hold=hold
        )
        with contextlib.suppress(RequestError):
            await call.post("lm", BODY)
    assert holds[-1] == 0
    assert answer is None or max(holds) > 0
