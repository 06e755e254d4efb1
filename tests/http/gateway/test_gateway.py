"""The gateway: forwarding, fan-out and merging over real HTTP to real replicas."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from tokenreward.http.protocols.native import Native
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import REQUESTS, Metrics
from tokenreward.wire import decode_rewards, read_reply
from tokenreward.wire.paths import CALLER_HEADER

ITEM: dict[str, Any] = {"prompt": "2+2?", "response": "It is 4.", "spans": [[0, 3], [3, 8]]}
IDS: dict[str, Any] = {"prompt": [5, 6, 7], "response": [8, 9]}


async def test_request_for_one_deployment_is_answered_as_the_deployment_would(
    gateway: Any, deployments: Any
) -> None:
    body = {"scorer": "reward_model", "items": [ITEM]}
    async with gateway() as client:
        through = (
            await client.post("/v1/rewards", json=body, headers={"x-request-id": "mine"})
        ).json()
        url = deployments["url"] + "/d/rm/v1/rewards"
        direct = (await client.post(url, json=body, headers={"x-request-id": "mine"})).json()
    del through["timing"], direct["timing"]
    assert through == direct
    assert through["id"] == "mine"


async def test_scorers_of_two_deployments_are_merged_item_by_item(gateway: Any) -> None:
    items = [ITEM, {**ITEM, "response": "", "spans": []}, ITEM]
    names = ["two", "endogenous", "reward_model"]
    body = {"scorers": names, "items": items, "options": {"endogenous": {"form": "logprob"}}}
    async with gateway() as client:
        reply = (await client.post("/v1/rewards", json=body)).json()
        alone = (await client.post("/v1/rewards", json={**body, "scorers": ["endogenous"]})).json()
    read_reply(reply)
    assert [item["index"] for item in reply["items"]] == [0, 1, 2]
    assert all(list(item["scorers"]) == names for item in reply["items"])
    assert [item["scorers"]["two"]["score"] is None for item in reply["items"]] == [
        False,
        True,
        False,
    ]
    merged, single = (r["items"][0]["scorers"]["endogenous"]["rewards"] for r in (reply, alone))
    np.testing.assert_allclose(merged, single, rtol=1e-5)
    assert {result["error"]["code"] for result in reply["items"][1]["scorers"].values()} == {
        "empty_response"
    }
    assert reply["usage"]["prompt_tokens"] == 2 * alone["usage"]["prompt_tokens"]


async def test_labels_of_one_scorer_go_to_its_deployment_in_one_request(
    gateway: Any, deployments: Any
) -> None:
    options: dict[str, Any] = {"a=endogenous": {}, "b=endogenous": {"form": "logprob"}, "c=two": {}}
    body = {"scorers": list(options), "options": options, "items": [ITEM]}
    deployments["asked"].clear()
    async with gateway() as client:
        reply = (await client.post("/v1/rewards", json=body)).json()
        combined = {**body, "combine": {"a=endogenous": 1.0, "b=endogenous": 1.0}}
        total = (await client.post("/v1/rewards", json=combined)).json()["items"][0]["score"]
        unknown = await client.post("/v1/rewards", json={**body, "scorers": ["a=endo"]})
    paths = sorted(path for path, *_ in deployments["asked"][:2])
    assert paths == ["/d/lm/v1/rewards", "/d/rm/v1/rewards"]
    scores = [result["score"] for result in reply["items"][0]["scorers"].values()]
    assert list(reply["items"][0]["scorers"]) == list(options)
    assert len(set(scores)) == 3
    assert total == pytest.approx(scores[0] + scores[1])
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_scorer")


async def test_every_result_names_its_model_and_version(gateway: Any) -> None:
    async with gateway() as client:
        reply = (
            await client.post("/v1/rewards", json={"scorers": ["one", "two"], "items": [ITEM]})
        ).json()
    results = reply["items"][0]["scorers"]
    assert (results["one"]["version"], results["two"]["version"]) == (1, 3)
    assert results["one"]["model"] != results["two"]["model"]


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("item", [ITEM, IDS], ids=["spans", "ids"])
async def test_combine_adds_weighted_rewards_over_deployments(
    gateway: Any, item: dict[str, Any], encoding: str
) -> None:
    body = {
        "scorers": ["endogenous", "two"],
        "combine": {"endogenous": 0.3, "two": -1.5},
        "items": [item],
    }
    async with gateway() as client:
        reply = (
            await client.post("/v1/rewards", json={**body, "encoding_format": encoding})
        ).json()
    (got,) = reply["items"]
    parts = {
        name: decode_rewards(result["rewards"]).astype(np.float64)
        for name, result in got["scorers"].items()
    }
    expected = (0.3 * parts["endogenous"] - 1.5 * parts["two"]).astype(np.float32)
    assert isinstance(got["rewards"], str) == (encoding == "base64")
    np.testing.assert_array_equal(decode_rewards(got["rewards"]), expected)
    scores = [got["scorers"][name]["score"] for name in ("endogenous", "two")]
    assert got["score"] == pytest.approx(0.3 * scores[0] - 1.5 * scores[1])


async def test_combine_of_an_item_with_an_error_is_null(gateway: Any) -> None:
    body = {
        "scorers": ["one", "two"],
        "combine": {"one": 1, "two": 1},
        "items": [ITEM, {**ITEM, "spans": [[0, 5]]}],
    }
    async with gateway() as client:
        good, bad = (await client.post("/v1/rewards", json=body)).json()["items"]
    assert good["rewards"] is not None
    assert (bad["rewards"], bad["score"]) == (None, None)
    assert bad["scorers"]["one"]["error"]["code"] == "spans_do_not_tile"


async def test_combine_past_float32_is_an_error_and_not_infinity(gateway: Any) -> None:
    body = {"scorers": ["one", "two"], "combine": {"one": 1e300, "two": 1e300}, "items": [IDS]}
    async with gateway() as client:
        (item,) = (await client.post("/v1/rewards", json=body)).json()["items"]
    assert (item["rewards"], item["score"], item["error"]["code"]) == (None, None, "non_finite")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"scorers": ["one", "nobody"]}, "unknown_scorer", "scorers"),
        ({"scorers": ["nobody"]}, "unknown_scorer", "scorers"),
        ({"scorer": "nobody"}, "unknown_scorer", "scorer"),
        ({"scorers": ["one", "two"], "scorer": "one"}, "invalid_field", None),
        ({"scorers": []}, "invalid_field", "scorers"),
        (
            {"scorers": ["one", "two"], "options": {"reward_model": {}}},
            "unknown_field",
            "options.reward_model",
        ),
        (
            {"scorers": ["one", "two"], "credit": {"two": {"beta": 7}}},
            "invalid_field",
            "credit.two.beta",
        ),
        (
            {"scorers": ["one", "two"], "options": {"two": {"volume": 11}}},
            "unknown_option",
            "options.two.volume",
        ),
        ({"scorers": ["one", "two"], "combine": {"endogenous": 1.0}}, "invalid_field", "combine"),
        ({"scorers": ["one", "two"], "items": [ITEM] * 9}, "too_many_items", "items"),
        ({"scorers": ["one", "two"], "items": []}, "invalid_field", "items"),
        (
            {
                "scorers": ["one", "two"],
                "combine": {"one": 1.0},
                "items": [{**ITEM, "spans": None}],
            },
            "units_differ",
            "items[0].spans",
        ),
        (
            {
                "scorers": ["one", "two"],
                "credit": {"two": {"kl": {"coef": 1.0, "reference": "one"}}},
            },
            "invalid_field",
            "credit.two.kl.reference",
        ),
    ],
)
async def test_request_wrong_for_one_deployment_is_refused_as_a_whole(
    gateway: Any, fields: dict[str, Any], code: str, param: str | None
) -> None:
    async with gateway() as client:
        response = await client.post("/v1/rewards", json={"items": [ITEM], **fields})
    detail = response.json()["error"]
    assert (detail["code"], detail["param"]) == (code, param)
    assert response.status_code in (404, 413, 422)


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity", "1" * 40, "[" * 150 + "]" * 150])
async def test_what_one_deployment_says_of_a_number_holds_for_two(
    gateway: Any, number: str
) -> None:
    rest = f'"items": [{json.dumps(ITEM)}], "options": {{"two": {{"value": {number}}}}}}}'
    async with gateway() as client:
        alone = await client.post("/v1/rewards", content='{"scorers": ["two"], ' + rest)
        both = await client.post("/v1/rewards", content='{"scorers": ["one", "two"], ' + rest)
    assert alone.status_code in (200, 422)
    assert both.status_code == alone.status_code
    assert both.json().get("error") == alone.json().get("error")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("names", [["one"], ["one", "two"]], ids=["forwarded", "split"])
async def test_a_body_is_parsed_once_if_it_is_split_and_never_if_not_and_large_ones_in_threads(
    gateway: Any, monkeypatch: pytest.MonkeyPatch, large: bool, names: list[str]
) -> None:
    threads: dict[str, list[threading.Thread]] = {"head": [], "read": []}

    class Watched(Native):
        def head(self, body: bytes) -> Any:
            threads["head"].append(threading.current_thread())
            return super().head(body)

        def read(self, body: bytes) -> Any:
            threads["read"].append(threading.current_thread())
            return super().read(body)

    monkeypatch.setattr("tokenreward.http.app.find_protocols", lambda: {"/v1/rewards": Watched})
    body = json.dumps({"scorers": names, "items": [ITEM]}) + " " * (300_000 if large else 0)
    async with gateway(
        limits=Limits(max_body_bytes=10**6, max_request_items=8, request_timeout_s=20)
    ) as client:
        await client.post("/v1/rewards", content=body)
    assert len(threads["head"]) == 1
    assert len(threads["read"]) == len(names) - 1
    main = [thread is threading.main_thread() for used in threads.values() for thread in used]
    assert set(main) == {not large}


async def test_unknown_scorer_lists_the_known_ones(gateway: Any) -> None:
    async with gateway() as client:
        response = await client.post("/v1/rewards", json={"scorer": "nobody", "items": [ITEM]})
    assert response.status_code == 404
    for name in ("endogenous", "one", "two", "reward_model"):
        assert name in response.json()["error"]["message"]


async def test_trailing_slash_is_an_unknown_route_and_no_redirect(gateway: Any) -> None:
    async with gateway() as client:
        response = await client.post("/v1/rewards/", json={"scorer": "one", "items": [ITEM]})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_route")


@pytest.mark.parametrize(
    "fields", [{"scorer": "x" * 9999}, {"scorers": ["one"], "combine": {"x" * 9999: 1.0}}]
)
async def test_errors_quote_no_more_of_a_name_than_is_needed(
    gateway: Any, fields: dict[str, Any]
) -> None:
    async with gateway() as client:
        response = await client.post("/v1/rewards", json={"items": [ITEM], **fields})
    message = response.json()["error"]["message"]
    assert "`" + "x" * 64 + "`" in message
    assert len(message) < 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("loaded", [None, {}], ids=["ready", "loading"])
async def test_probes_answer_a_head_as_a_get_without_body(
    gateway: Any, path: str, loaded: Any
) -> None:
    async with gateway(loaded=loaded) as client:
        got, headed = await client.get(path), await client.head(path)
    assert (headed.status_code, headed.content) == (got.status_code, b"")
    assert headed.headers["content-length"] == got.headers["content-length"]


async def test_all_scorers_are_listed_with_their_routes(gateway: Any) -> None:
    async with gateway() as client:
        listing = (await client.get("/v1/scorers")).json()
    entries = listing["scorers"]
    assert listing["unavailable"] == []
    assert {entry["name"]: entry["route"] for entry in entries} == {
        "endogenous": "/d/lm/v1/rewards",
        "one": "/d/lm/v1/rewards",
        "reward_model": "/d/rm/v1/rewards",
        "process": "/d/rm/v1/rewards",
        "two": "/d/rm/v1/rewards",
    }


async def test_metrics_of_all_replicas_stand_in_one_text(gateway: Any) -> None:
    async with gateway() as client:
        text = (await client.get("/metrics")).text
    assert 'tokenreward_model_version{deployment="lm",replica="lm-r1"} 1.0' in text
    assert 'tokenreward_model_version{deployment="rm",replica="rm-r1"} 3.0' in text
    assert text.count("# TYPE tokenreward_model_version") == 1


async def test_metrics_of_the_gateways_other_replicas_are_there_and_its_own_once(
    gateway: Any,
) -> None:
    other, stale = Metrics(REQUESTS), Metrics(REQUESTS)
    other.report("requests_total", 7, status="200")
    stale.report("requests_total", 9, status="404")
    loaded = {"gateway": {"gateway-1": stale.snapshot(), "gateway-2": other.snapshot()}}
    async with gateway(loaded=loaded) as client:
        await client.get("/nowhere")
        text = (await client.get("/metrics")).text
    counts = re.findall(
        r'requests_total\{deployment="gateway",replica="(.+)",status="(.+)"\} (.+)', text
    )
    assert sorted(counts) == [("gateway-1", "404", "1.0"), ("gateway-2", "200", "7.0")]


async def test_refusals_of_the_gateway_itself_are_in_its_metrics(gateway: Any) -> None:
    limits = Limits(
        max_body_bytes=1000,
        max_request_items=2,
        request_timeout_s=20,
        api_keys=(SecretStr("sesame"),),
    )
    two = {"scorers": ["one", "two"], "items": [ITEM]}
    key = {"authorization": "Bearer sesame"}
    async with gateway(limits=limits) as client:
        await client.post("/v1/rewards", json=two)
        await client.get("/nowhere", headers=key)
        await client.post("/v1/rewards", content=b" " * 1001, headers=key)
        await client.post("/v1/rewards", json={**two, "items": [ITEM] * 3}, headers=key)
        await client.post("/v1/rewards", json={**two, "combine": {"nobody": 1}}, headers=key)
        await client.post("/v1/rewards", json={**two, "scorers": ["nobody"]}, headers=key)
        await client.post("/v1/rewards", json=two, headers=key)
        text = (await client.get("/metrics", headers=key)).text
    codes = (
        "unauthorized",
        "unknown_route",
        "body_too_large",
        "too_many_items",
        "invalid_field",
        "unknown_scorer",
    )
    for code in codes:
        assert (
            f'tokenreward_errors_total{{code="{code}",deployment="gateway",'
            'replica="gateway-1"} 1.0' in text
        )
    assert (
        'tokenreward_requests_total{deployment="gateway",replica="gateway-1",status="200"} 1.0'
        in text
    )
    assert 'tokenreward_request_seconds_count{deployment="gateway",replica="gateway-1"} 6.0' in text
    assert 'tokenreward_model_version{deployment="gateway"' not in text


async def test_deployment_without_replica_is_not_ready_and_costs_only_its_own_results(
    gateway: Any,
) -> None:
    async with gateway(loaded={"lm": {"r1": []}, "rm": {}}) as client:
        ready = await client.get("/readyz")
        alone = await client.post("/v1/rewards", json={"scorer": "two", "items": [ITEM]})
        listed = await client.get("/v1/scorers")
        body = {"scorers": ["one", "two"], "combine": {"one": 1.0, "two": 1.0}, "items": [ITEM]}
        both = await client.post("/v1/rewards", json=body)
        alive = await client.get("/healthz")
    assert listed.status_code == 200
    assert listed.json()["unavailable"] == ["rm"]
    assert {entry["deployment"] for entry in listed.json()["scorers"]} == {"lm"}
    for refused in (ready, alone):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert refused.headers["retry-after"] == "2"
        assert "rm" in refused.json()["error"]["message"]
    assert both.status_code == 200
    (item,) = both.json()["items"]
    assert item["scorers"]["one"]["error"] is None
    assert item["scorers"]["two"]["error"]["code"] == "loading"
    assert item["scorers"]["two"]["error"]["retryable"] is True
    assert (item["rewards"], item["score"]) == (None, None)
    assert alive.status_code == 200


async def test_nothing_to_list_is_the_error_of_the_deployments(gateway: Any) -> None:
    async with gateway(loaded={}) as client:
        listed = await client.get("/v1/scorers")
    assert (listed.status_code, listed.json()["error"]["code"]) == (503, "loading")


async def test_errors_that_the_gateway_gives_to_items_are_counted_one_by_one(gateway: Any) -> None:
    body = {"scorers": ["one", "two", "reward_model"], "items": [ITEM] * 2}
    async with gateway(loaded={"lm": {"r1": []}, "rm": {}}) as client:
        await client.post("/v1/rewards", json=body)
        text = (await client.get("/metrics")).text
    assert (
        'tokenreward_errors_total{code="loading",deployment="gateway",replica="gateway-1"} 4.0'
        in text
    )


async def test_a_sum_that_is_not_finite_is_counted(gateway: Any) -> None:
    body = {"scorers": ["one", "two"], "combine": {"one": 1e300, "two": 1e300}, "items": [IDS] * 3}
    async with gateway() as client:
        await client.post("/v1/rewards", json=body)
        text = (await client.get("/metrics")).text
    assert (
        'tokenreward_errors_total{code="non_finite",deployment="gateway",replica="gateway-1"} 3.0'
        in text
    )


async def test_too_many_items_for_the_gateway_is_said_as_a_replica_says_it(
    gateway: Any, deployments: Any
) -> None:
    body: dict[str, Any] = {"scorers": ["one", "two"], "items": [ITEM] * 9}
    async with gateway() as client:
        split = (await client.post("/v1/rewards", json=body)).json()["error"]
        url = deployments["url"] + "/d/lm/v1/rewards"
        alone = (await client.post(url, json={**body, "scorers": ["one"]})).json()["error"]
    assert split == alone
    assert "the limit is 8 (`max_request_items`)" in split["message"]


async def test_unknown_route_is_named_with_its_method(gateway: Any) -> None:
    async with gateway() as client:
        wrong_method = (await client.get("/v1/rewards")).json()["error"]["message"]
        wrong_path = (await client.post("/v1/%00" + "x" * 99, json={})).json()["error"]["message"]
    assert wrong_method.startswith("no such route: GET /v1/rewards; ")
    assert "POST /v1/rewards" in wrong_path
    assert wrong_path.startswith("no such route: POST /v1/?" + "x" * 59 + "; ")


async def test_ready_when_every_deployment_has_a_replica(gateway: Any) -> None:
    async with gateway() as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_only_the_deployment_a_request_needs_is_asked_and_once(gateway: Any) -> None:
    async with gateway() as client:
        for _ in range(3):
            assert (
                await client.post("/v1/rewards", json={"scorer": "one", "items": [ITEM]})
            ).status_code == 200
        assert gateway.probes == ["lm"]
        for _ in range(3):
            assert (await client.get("/readyz")).status_code == 200
        assert gateway.probes == ["lm", "rm"]


async def test_answer_on_readiness_stands_for_a_second(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, Any] = {"lm": {"r1": []}, "rm": {"r1": []}}
    async with gateway(loaded=loaded) as client:
        assert (await client.get("/readyz")).status_code == 200
        loaded["rm"] = {}
        assert (await client.get("/readyz")).status_code == 200
        monkeypatch.setattr("tokenreward.http.gateway.upstream._READY_STANDS_S", 0.0)
        assert (await client.get("/readyz")).status_code == 503


async def test_key_opens_the_gateway_and_travels_on(gateway: Any) -> None:
    limits = Limits(
        max_body_bytes=1000,
        max_request_items=8,
        request_timeout_s=20,
        api_keys=(SecretStr("sesame"),),
    )
    body = {"scorer": "one", "items": [ITEM]}
    async with gateway(limits=limits) as client:
        for path in ("/v1/scorers", "/metrics", "/nowhere"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/v1/rewards", json=body)).status_code == 401
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        key = {"authorization": "Bearer sesame"}
        assert (await client.post("/v1/rewards", json=body, headers=key)).status_code == 200
        too_large = await client.post("/v1/rewards", content=b" " * 1001, headers=key)
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "body_too_large")


async def test_deployments_hear_of_the_trace(gateway: Any, deployments: Any) -> None:
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    async with gateway() as client:
        await client.post(
            "/v1/rewards", json={"scorer": "endogenous", "items": [ITEM]}, headers=trace
        )
    _, headers, _ = deployments["asked"][-1]
    assert {name: headers[name.encode()].decode() for name in trace} == trace


@pytest.mark.parametrize(
    "name",
    ["authorization", CALLER_HEADER, "x-request-id", "traceparent", "serve_multiplexed_model_id"],
)
@pytest.mark.parametrize("value", [b"Bearer \xff\xfe", b"a" * 5000, b"\xb2"])
async def test_a_header_of_any_bytes_breaks_nothing(gateway: Any, name: str, value: bytes) -> None:
    two = {"scorers": ["endogenous", "two"], "items": [ITEM]}
    async with gateway() as client:
        for body in ({"scorer": "endogenous", "items": [ITEM]}, two):
            answer = await client.post("/v1/rewards", json=body, headers={name: value})
            assert answer.status_code == 200, answer.text
            assert answer.json()["id"] == answer.headers["x-request-id"]
            assert len(answer.headers["x-request-id"]) <= 128


@pytest.mark.parametrize(
    "value", [b"\xb2", b"\xff", b"1e308", b"nan", b"-1", b"0", b"inf", b"1e-400"]
)
async def test_a_deadline_that_is_none_is_refused(gateway: Any, value: bytes) -> None:
    body = {"scorer": "endogenous", "items": [ITEM]}
    headers = {b"x-request-timeout-seconds": value}
    async with gateway() as client:
        answer = await client.post("/v1/rewards", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_field")
        headers = {b"x-request-timeout-seconds": b"0.0001"}
        answer = await client.post("/v1/rewards", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_deployments_hear_whom_the_gateway_asks_for(gateway: Any, deployments: Any) -> None:
    body = {"scorer": "endogenous", "items": [ITEM]}
    async with gateway() as client:
        await client.post("/v1/rewards", json=body)
    limits = Limits(
        max_body_bytes=9999,
        max_request_items=2,
        request_timeout_s=20,
        api_keys=(SecretStr("secret"),),
    )
    async with gateway(limits=limits) as client:
        await client.post("/v1/rewards", json=body, headers={"authorization": "Bearer secret"})
    by_connection, by_key = (
        headers[CALLER_HEADER.encode()].decode() for _, headers, _ in deployments["asked"][-2:]
    )
    assert by_connection.rpartition(":")[2].isdigit()
    assert by_key != by_connection
    assert "secret" not in by_key
