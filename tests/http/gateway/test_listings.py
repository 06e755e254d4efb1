"""What the gateway knows of scorers from their deployments' listings: when it asks for them, and
when it asks again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from fakes.scripted import LOG_PROBS, answers, reply
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.wire.paths import HOLD_HEADER

IDS: dict[str, Any] = {"prompt": [1], "response": [2, 3], "policy_logprobs": [-1.0, -1.0]}
KL = {"kl": {"coef": 1.0, "reference": "endogenous"}}
BODY = {"scorer": "two", "items": [IDS], "credit": KL}
COMBINED = {"scorers": ["one", "two"], "combine": {"one": 1.0, "two": 1.0}, "items": [IDS]}


def listing(*, version: int | None = None, **tokenizers: str) -> dict[str, Any]:
    """The listing of both deployments, with these tokenizers by scorer."""
    entries = []
    for name in ("endogenous", "one", "two"):
        entry = {"name": name, "tokenizer": tokenizers.get(name, "t"), "version": version}
        entries.append({**entry, "log_probs_options": {"form": "logprob"}})
    return {"scorers": entries}


def both(version: int) -> Any:
    """Deployments that answer with weights of this version."""
    log_probs = reply([{"rewards": LOG_PROBS}], version=version)
    rewards = reply([{"rewards": [1.0, 2.0], "score": 3.0}], version=version)
    return answers(lm=log_probs, rm=rewards)


async def test_listings_are_asked_for_once_and_not_for_every_request(
    edge: Any, client: Any
) -> None:
    edge.listing, edge.answer = listing(version=1), both(1)
    async with client() as opened:
        for _ in range(3):
            assert (await opened.post("/v1/rewards", json=BODY)).status_code == 200
    assert edge.num_listed == 2  # one of each deployment


async def test_text_and_spans_need_the_listing_of_the_reference_alone(
    edge: Any, client: Any
) -> None:
    edge.answer = both(1)
    item = {**IDS, "prompt": "a", "response": "bc", "spans": [[0, 1], [1, 2]]}
    async with client() as opened:
        await opened.post("/v1/rewards", json={**BODY, "items": [item]})
    assert edge.num_listed == 1


async def test_listings_of_the_route_for_all_scorers_are_kept(edge: Any, client: Any) -> None:
    edge.listing, edge.answer = listing(version=1), both(1)
    async with client() as opened:
        assert (await opened.get("/v1/scorers")).status_code == 200
        assert edge.num_listed == 2
        await opened.post("/v1/rewards", json=BODY)
    assert edge.num_listed == 2


async def test_another_version_of_the_weights_is_listed_anew_once(edge: Any, client: Any) -> None:
    edge.listing, edge.answer = listing(version=1), both(1)
    async with client() as opened:
        await opened.post("/v1/rewards", json=BODY)
        edge.listing, edge.answer = listing(version=2), both(2)
        for _ in range(3):
            assert (await opened.post("/v1/rewards", json=BODY)).status_code == 200
    assert edge.num_listed == 4


@pytest.mark.parametrize("body", [BODY, COMBINED], ids=["reference", "combined"])
async def test_tokenizers_of_the_weights_that_answered_are_compared_and_not_those_of_before(
    edge: Any, client: Any, body: dict[str, Any]
) -> None:
    keyed = {name: {"rewards": [1.0, 2.0], "score": 1.0, "error": None} for name in ("one", "two")}

    def answering(version: int) -> Any:
        if body is BODY:
            return both(version)
        content = reply([{"scorers": keyed}], version=version)
        return answers(lm=content, rm=content)

    edge.listing, edge.answer = listing(version=1), answering(1)
    async with client() as opened:
        assert (await opened.post("/v1/rewards", json=body)).status_code == 200
        edge.listing, edge.answer = listing(version=2, two="other"), answering(2)
        refused = await opened.post("/v1/rewards", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "units_differ")


def combining(*, lists: Callable[[], Any], answer: Any = None) -> Any:
    """`lm` answers and lists; `rm` answers with rewards or with `answer`, and lists what `lists`
    makes."""

    def rewards(*names: str) -> dict[str, Any]:
        result = {"rewards": [1.0, 2.0], "score": 3.0, "error": None}
        return reply([{"scorers": dict.fromkeys(names, result)}])

    async def lm(request: Request) -> Any:
        if request.method == "GET":
            return listing()
        return rewards(*json.loads(await request.body())["scorers"])

    async def rm(request: Request) -> Any:
        return lists() if request.method == "GET" else answer or rewards("two")

    return answers(lm=lm, rm=rm)


def no_replica() -> Response:
    return PlainTextResponse("no replica", 503)


async def test_a_deployment_that_is_down_costs_a_combination_and_no_other_results(
    edge: Any, client: Any
) -> None:
    edge.listing = None
    async with client() as opened:
        edge.answer = combining(lists=listing)
        before = await opened.post("/v1/rewards", json=COMBINED)
        assert before.json()["items"][0]["rewards"] == [2.0, 4.0]
        edge.answer = combining(lists=no_replica, answer=no_replica())
        for _ in range(2):  # its listing is known, and then it is not
            response = await opened.post("/v1/rewards", json=COMBINED)
            assert response.status_code == 200
            (item,) = response.json()["items"]
            assert item["scorers"]["one"]["rewards"] == [1.0, 2.0]
            error = item["scorers"]["two"]["error"]
            assert (error["code"], error["retryable"]) == ("loading", True)
            assert (item["rewards"], item["score"]) == (None, None)


async def test_where_tokenizers_are_not_known_nothing_is_added_up_and_the_item_says_so(
    edge: Any, client: Any
) -> None:
    edge.listing, edge.answer = None, combining(lists=no_replica)
    async with client() as opened:
        response = await opened.post("/v1/rewards", json=COMBINED)
        metrics = (await opened.get("/metrics")).text
    (item,) = response.json()["items"]
    assert [result["rewards"] for result in item["scorers"].values()] == [[1.0, 2.0]] * 2
    assert (item["rewards"], item["score"]) == (None, None)
    error = item["error"]
    assert (error["code"], error["param"], error["retryable"]) == ("loading", "combine", True)
    assert 'errors_total{code="loading",deployment="gateway",replica="gateway-1"} 1.0' in metrics


@pytest.mark.parametrize(("tokenizer", "status"), [("t", 200), ("other", 422)])
async def test_a_listing_that_failed_is_asked_for_again_when_the_deployments_have_answered(
    edge: Any, client: Any, tokenizer: str, status: int
) -> None:
    listings = iter([no_replica(), JSONResponse(listing(two=tokenizer))])
    edge.listing, edge.answer = None, combining(lists=lambda: next(listings))
    async with client() as opened:
        response = await opened.post("/v1/rewards", json=COMBINED)
    assert response.status_code == status
    if status == 200:
        assert response.json()["items"][0]["rewards"] == [2.0, 4.0]
    else:
        assert response.json()["error"]["code"] == "units_differ"


async def test_who_waits_for_a_deployment_that_loads_has_the_others_asked_meanwhile(
    edge: Any, client: Any
) -> None:
    def lists() -> Any:
        return listing() if any(asked.method == "POST" for asked in edge.requests) else no_replica()

    edge.listing, edge.answer = None, combining(lists=lists)
    async with client() as opened:
        response = await opened.post("/v1/rewards", json=COMBINED, headers={HOLD_HEADER: "1000"})
    assert response.status_code == 200
    assert response.json()["items"][0]["rewards"] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("combined", "status"), [({"one": 1.0, "endogenous": 1.0}, 200), ({"nobody": 1.0}, 422)]
)
async def test_only_scorers_that_are_combined_need_a_tokenizer(
    edge: Any, client: Any, combined: dict[str, float], status: int
) -> None:
    edge.listing, edge.answer = None, combining(lists=no_replica, answer=no_replica())
    body = {"scorers": ["one", "endogenous", "two"], "combine": combined, "items": [IDS]}
    async with client() as opened:
        response = await opened.post("/v1/rewards", json=body)
    assert response.status_code == status
    if status == 200:
        assert response.json()["items"][0]["rewards"] == [2.0, 4.0]
    assert not any(asked.method == "GET" for asked in edge.requests)


async def test_a_deployment_that_failed_to_answer_is_listed_anew(edge: Any, client: Any) -> None:
    edge.answer = both(1)
    async with client() as opened:
        await opened.post("/v1/rewards", json=BODY)

        async def broken(_: Request) -> Response:
            return PlainTextResponse("no replica", 500)

        edge.answer = broken
        await opened.post("/v1/rewards", json=BODY)  # `lm` fails first, and `rm` is not asked
        edge.answer = both(1)
        assert (await opened.post("/v1/rewards", json=BODY)).status_code == 200
    assert edge.num_listed == 3


async def test_a_type_that_the_gateway_does_not_know_is_a_reference_if_its_scorer_says_so(
    edge: Any, deployments: Any, open_gateway: Any
) -> None:
    routes = {"theirs": ScorerRoute("lm", "their.own:Scorer"), "two": ScorerRoute("rm", "constant")}
    entry = {"name": "theirs", "tokenizer": "t", "log_probs_options": {"as": "log-probs"}}
    edge.listing = {"scorers": [entry, {"name": "two", "tokenizer": "t"}]}
    edge.answer = both(1)
    body = {**BODY, "credit": {"kl": {"coef": 1.0, "reference": "theirs"}}}
    async with open_gateway(deployments, routes)(edge.url) as opened:
        assert (await opened.post("/v1/rewards", json=body)).status_code == 200
    question = json.loads(edge.bodies[0])
    assert (question["scorer"], question["options"]) == ("theirs", {"as": "log-probs"})


async def test_a_scorer_that_gives_no_log_probs_is_no_reference(edge: Any, client: Any) -> None:
    edge.listing = {"scorers": [{"name": "endogenous", "tokenizer": "t"}]}
    item = {**IDS, "prompt": "a", "response": "bc", "spans": [[0, 1], [1, 2]]}
    async with client() as opened:
        refused = await opened.post("/v1/rewards", json={**BODY, "items": [item]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_field")
    assert refused.json()["error"]["param"] == "credit.kl.reference"
    assert edge.requests == []


async def test_a_listing_that_fails_fails_only_the_scorer_that_needs_it(
    edge: Any, client: Any
) -> None:
    log_probs = {"rewards": LOG_PROBS, "score": None, "error": None, "model": "m", "version": 1}

    async def lm(request: Request) -> Any:
        if request.method == "GET":
            detail = {"code": "loading", "message": "soon", "param": None, "retryable": True}
            return JSONResponse({"error": detail}, 503, {"retry-after": "3"})
        await asyncio.sleep(0.2)  # until the listing has failed
        return reply([{"scorers": {"endogenous": log_probs}}])

    edge.listing, edge.answer = None, answers(lm=lm, rm=listing())
    body = {"scorers": ["endogenous", "two"], "items": [IDS], "credit": {"two": KL}}
    async with client() as opened:
        response = await opened.post("/v1/rewards", json=body)
        assert response.status_code == 200
        results = response.json()["items"][0]["scorers"]
        assert results["endogenous"]["rewards"] == LOG_PROBS
        assert results["two"]["error"]["code"] == "loading"
        assert results["two"]["error"]["retryable"]
        alone = await opened.post("/v1/rewards", json={**BODY, "scorer": "two"})
    assert (alone.status_code, alone.headers["retry-after"]) == (503, "3")
