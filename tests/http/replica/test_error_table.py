"""Every request-level error of the contract's table, through real HTTP: status, code, body,
headers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from fakes.web import until
from tokenreward import errors
from tokenreward.errors import RequestError
from tokenreward.wire.paths import HOLD_HEADER

SECRET = "xyzzyplugh"
ITEM: dict[str, Any] = {"prompt": [5, 6, 7], "response": [8, 9]}
TEXT_ITEM = {"prompt": f"{SECRET}?", "response": SECRET}

Case = Callable[[httpx.AsyncClient, Any], Awaitable[httpx.Response]]
CASES: dict[str, list[Case]] = {}


def all_classes(root: type[RequestError]) -> Iterator[type[RequestError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from all_classes(child)


CLASSES = {cls.code: cls for cls in all_classes(RequestError)}


def case(code: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        CASES.setdefault(code, []).append(function)
        return function

    return register


def ask(client: httpx.AsyncClient, **fields: Any) -> Awaitable[httpx.Response]:
    return client.post("/v1/rewards", json={"scorer": "endogenous", "items": [TEXT_ITEM], **fields})


@pytest.fixture
async def client(served: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=served.url, timeout=20, headers={HOLD_HEADER: "0"}
    ) as client:
        yield client


@case("malformed_json")
async def broken_json(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.post("/v1/rewards", content=b'{"items": "' + SECRET.encode())


@case("malformed_body")
async def body_is_a_list(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.post("/v1/rewards", content=b'["' + SECRET.encode() + b'"]')


@case("unauthorized")
async def no_key(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    return await client.post(
        fixture("locked").url + "/v1/rewards", json={"scorer": "one", "items": [TEXT_ITEM]}
    )


@case("unauthorized")
async def wrong_key_at_unknown_route(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    return await client.get(
        fixture("locked").url + "/nowhere", headers={"authorization": "Bearer the-first-kez"}
    )


@case("unknown_scorer")
async def scorer_nobody_serves(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, scorer="nobody")


@case("unknown_route")
async def path_nobody_serves(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.post("/v1/reward", json=TEXT_ITEM)


@case("unknown_route")
async def method_nobody_serves(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.get("/v1/rewards")


@case("unknown_route")
async def trailing_slash(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.post("/v1/rewards/", json=TEXT_ITEM)


@case("version_not_reached")
async def version_of_the_future(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, min_version=99)


@case("body_too_large")
async def declared_length_over_the_limit(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.post("/v1/rewards", content=b" " * 20_001)


@case("body_too_large")
async def counted_bytes_over_the_limit(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(21):
            yield b" " * 1000

    return await client.post("/v1/rewards", content=chunks())


@case("too_many_items")
async def nine_items(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, items=[TEXT_ITEM] * 9)


@case("larger_than_queue")
async def more_tokens_than_may_ever_wait(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, items=[{"prompt": [5] * 60, "response": [6] * 60}])


@case("unknown_field")
async def misspelt_field(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, credits={})


@case("invalid_field")
async def number_for_a_response(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, items=[{"prompt": SECRET, "response": 5}])


@case("invalid_field")
async def deadline_that_is_no_number(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await client.post(
        "/v1/rewards", content=b"{}", headers={"x-request-timeout-seconds": "soon"}
    )


@case("invalid_field")
async def reference_that_is_not_served(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, credit={"kl": {"coef": 0.1, "reference": "sft"}})


@case("unknown_option")
async def misspelt_option(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, options={"alfa": 1.0})


@case("credit_not_supported")
async def attention_credit_without_attention(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    return await ask(client, credit={"name": "attention"})


@case("units_differ")
async def combined_text_without_spans(client: httpx.AsyncClient, _: Any) -> httpx.Response:
    body = {
        "scorers": ["endogenous", "one"],
        "combine": {"endogenous": 1.0, "one": 1.0},
        "items": [TEXT_ITEM],
    }
    return await client.post("/v1/rewards", json=body)


@case("internal")
async def engine_is_closed(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    return await client.post(
        fixture("broken").url + "/v1/rewards", json={"scorer": "endogenous", "items": [TEXT_ITEM]}
    )


@case("overloaded")
async def queue_is_full(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    served, item = fixture("served"), {"prompt": [5] * 30, "response": [6] * 30}
    with served.busy_device():
        waiting = asyncio.create_task(ask(client, items=[item]))
        await until(lambda: served.engine.batcher.queued_items > 0)
        refused = await ask(client, items=[item])
    assert (await waiting).status_code == 200
    return refused


@case("loading")
async def weights_are_not_there_yet(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    return await client.post(
        fixture("loading") + "/v1/rewards", json={"scorer": "one", "items": [TEXT_ITEM]}
    )


@case("loading")
async def not_ready_yet(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    return await client.get(fixture("loading") + "/readyz")


@case("deadline_exceeded")
async def device_is_busy_past_the_deadline(
    client: httpx.AsyncClient, fixture: Any
) -> httpx.Response:
    served = fixture("served")
    with served.busy_device():
        body = {"scorer": "endogenous", "items": [ITEM]}
        return await client.post(
            "/v1/rewards", json=body, headers={"x-request-timeout-seconds": "0.3"}
        )


@case("body_timeout")
async def body_stops_arriving(client: httpx.AsyncClient, fixture: Any) -> httpx.Response:
    fixture("monkeypatch").setattr("tokenreward.http.body_stream._MAX_PAUSE_S", 0.05)

    async def half() -> AsyncIterator[bytes]:
        yield b'{"scorer": "one", '
        await asyncio.sleep(20)

    return await client.post("/v1/rewards", content=half())


def test_table_has_a_case_for_every_request_error_but_those_of_pushes() -> None:
    assert set(CASES) == set(CLASSES) - {"updating", "version_conflict"}


@pytest.mark.parametrize(
    ("code", "produce"),
    [
        pytest.param(code, made, id=f"{code}-{made.__name__}")
        for code, cases in CASES.items()
        for made in cases
    ],
)
async def test_refusal_has_the_one_body_and_the_tables_status(
    code: str, produce: Case, client: httpx.AsyncClient, request: pytest.FixtureRequest
) -> None:
    client.headers["x-request-id"] = "asked-by-me"
    response = await produce(client, request.getfixturevalue)
    expected = CLASSES[code]
    assert response.status_code == expected.status
    assert set(response.json()) == {"error"}
    detail = response.json()["error"]
    assert set(detail) == {"code", "message", "param", "retryable"}
    assert (detail["code"], detail["retryable"]) == (code, expected.retryable)
    assert detail["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "asked-by-me"
    assert ("retry-after" in response.headers) == (response.status_code == 503)
    assert SECRET not in response.text


async def test_size_refusals_name_the_limit_and_the_value(client: httpx.AsyncClient) -> None:
    too_large = (await client.post("/v1/rewards", content=b" " * 20_001)).json()["error"]["message"]
    assert "20001" in too_large
    assert "20000" in too_large
    too_many = (await ask(client, items=[ITEM] * 9)).json()["error"]["message"]
    assert "9 items" in too_many
    assert "limit is 8" in too_many


async def test_declared_length_is_refused_before_the_body_is_sent(served: Any) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /v1/rewards HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000000000\r\n\r\n".encode()
    )
    status = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    await writer.wait_closed()
    assert status.split()[1] == b"413"


@pytest.mark.parametrize("value", ["soon", "", "0", "-1", "inf", "nan"])
async def test_deadline_must_be_a_positive_number_of_seconds(
    client: httpx.AsyncClient, value: str
) -> None:
    body = {"scorer": "one", "items": [ITEM]}
    response = await client.post(
        "/v1/rewards", json=body, headers={"x-request-timeout-seconds": value}
    )
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "x-request-timeout-seconds"
    assert response.json()["error"]["message"].endswith(f", got `{value}`")


async def test_deadline_past_the_ceiling_is_refused_with_both_numbers(
    client: httpx.AsyncClient,
) -> None:
    body = {"scorer": "one", "items": [ITEM]}
    for value, status in (("3600", 200), ("3600.5", 422), ("1e9", 422)):
        response = await client.post(
            "/v1/rewards", json=body, headers={"x-request-timeout-seconds": value}
        )
        assert response.status_code == status
        if status == 422:
            error = response.json()["error"]
            assert (error["code"], error["param"]) == ("invalid_field", "x-request-timeout-seconds")
            assert "at most 3600 seconds (`max_timeout_s`)" in error["message"]
            assert error["message"].endswith(f"got `{value}`")


async def test_scorer_that_nobody_serves_is_at_fault_in_the_field_that_named_it(
    client: httpx.AsyncClient,
) -> None:
    for fields in ({"scorer": "nobody"}, {"scorers": ["nobody"]}):
        response = await client.post("/v1/rewards", json={"items": [ITEM], **fields})
        assert response.json()["error"]["param"] == next(iter(fields))


async def test_unknown_route_is_named_with_its_method(client: httpx.AsyncClient) -> None:
    wrong_method = (await client.get("/v1/rewards")).json()["error"]["message"]
    assert wrong_method.startswith("no such route: GET /v1/rewards; ")
    wrong_path = (await client.post("/" + "x" * 99, json={})).json()["error"]["message"]
    assert wrong_path.startswith("no such route: POST /" + "x" * 63 + "; ")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_answer_a_head_as_a_get_without_body(
    client: httpx.AsyncClient, loading: str, path: str
) -> None:
    for url in (path, loading + path):
        got, headed = await client.get(url), await client.head(url)
        assert (headed.status_code, headed.content) == (got.status_code, b"")
