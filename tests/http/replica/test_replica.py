"""What one replica's HTTP promises when nothing is wrong: replies, keys, ids, hang-ups, a change of
weights."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from fakes.web import until
from tokenreward.engine import Engine
from tokenreward.engine.slot import Slot
from tokenreward.http.app import build_app
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.http.scope import trace_of
from tokenreward.metrics import Metrics
from tokenreward.settings import DeploymentSettings
from tokenreward.wire import Reply, RewardsRequest, decode_rewards, parse, read_reply

ITEM: dict[str, Any] = {"prompt": "2+2?", "response": "It is 4."}
BODY = {"scorer": "endogenous", "items": [ITEM]}
LIMITS = Limits(max_body_bytes=10**6, max_request_items=100, request_timeout_s=20)


def app_of(slot: Slot) -> FastAPI:
    return build_app(ReplicaBackend("lm", slot, metrics=Metrics(), limits=LIMITS))


def counted(text: str, line: str) -> float:
    """The sum over the rows of `/metrics` that begin so."""
    return sum(float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line))


@pytest.fixture
async def client(served: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        yield client


async def test_reply_is_what_the_engine_says(client: httpx.AsyncClient, checkpoint: Path) -> None:
    scorers = ({"type": "endogenous"},)
    settings = {
        "name": "lm",
        "checkpoint": str(checkpoint),
        "task": "causal_lm",
        "device": "cpu",
        "scorers": scorers,
    }
    engine = Engine.load(DeploymentSettings.model_validate(settings))
    expected = await engine.score(parse(RewardsRequest, BODY))
    await engine.close()
    reply = read_reply((await client.post("/v1/rewards", json=BODY)).json())
    assert (reply.scorer, reply.model, reply.version) == ("endogenous", str(checkpoint), 1)
    np.testing.assert_allclose(
        decode_rewards(reply.items[0].rewards or []), expected.items[0].rewards, rtol=1e-5
    )


async def test_base64_and_float_carry_the_same_numbers(client: httpx.AsyncClient) -> None:
    as_text = (await client.post("/v1/rewards", json={**BODY, "encoding_format": "base64"})).json()
    as_list = (await client.post("/v1/rewards", json=BODY)).json()
    assert isinstance(as_text["items"][0]["rewards"], str)
    decoded = decode_rewards(as_text["items"][0]["rewards"])
    np.testing.assert_allclose(decoded, np.float32(as_list["items"][0]["rewards"]), rtol=1e-5)


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "identity, br", "zstd"])
async def test_a_compressed_body_is_refused_by_that_name(
    client: httpx.AsyncClient, encoding: str
) -> None:
    content = gzip.compress(json.dumps(BODY).encode())
    for path in ("/v1/rewards", "/tokenize"):
        answer = await client.post(path, content=content, headers={"content-encoding": encoding})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
        assert f"`{encoding.lower().rpartition(' ')[2]}`" in answer.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["", "identity", "utf-8"])
async def test_an_encoding_that_changes_no_byte_is_none(
    client: httpx.AsyncClient, encoding: str
) -> None:
    answer = await client.post("/v1/rewards", json=BODY, headers={"content-encoding": encoding})
    assert answer.status_code == 200, answer.text


async def test_wrong_item_fails_alone_with_status_200(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/rewards", json={**BODY, "items": [{**ITEM, "response": ""}, ITEM]}
    )
    assert response.status_code == 200
    failed, scored = response.json()["items"]
    assert failed["error"]["code"] == "empty_response"
    assert failed["rewards"] is None
    assert scored["error"] is None


async def test_combine_weighs_the_scorers_of_one_replica(client: httpx.AsyncClient) -> None:
    item = {**ITEM, "spans": [[0, 3], [3, 8]]}
    body = {
        "scorers": ["endogenous", "one"],
        "combine": {"endogenous": 0.5, "one": 2.0},
        "items": [item],
    }
    (item,) = (await client.post("/v1/rewards", json=body)).json()["items"]
    endogenous, one = item["scorers"]["endogenous"], item["scorers"]["one"]
    expected = 0.5 * np.asarray(endogenous["rewards"]) + 2.0 * np.asarray(one["rewards"])
    np.testing.assert_allclose(item["rewards"], expected, rtol=1e-6)
    assert item["score"] == pytest.approx(0.5 * endogenous["score"] + 2.0 * one["score"])


async def test_scorers_are_listed_with_their_direct_route(client: httpx.AsyncClient) -> None:
    entries = (await client.get("/v1/scorers")).json()["scorers"]
    assert [entry["name"] for entry in entries] == ["endogenous", "one"]
    assert {entry["route"] for entry in entries} == {"/d/lm/v1/rewards"}
    assert entries[0]["limits"]["max_request_items"] == 8
    assert entries[0]["limits"]["max_body_bytes"] == 20_000
    assert entries[0]["limits"]["max_queued_tokens"] == 64


async def test_large_reply_says_the_same_as_a_small_one(checkpoint: Path) -> None:
    settings = {"name": "lm", "checkpoint": str(checkpoint), "task": "causal_lm", "device": "cpu"}
    slot = Slot()
    engine = Engine.load(
        DeploymentSettings.model_validate({**settings, "scorers": ({"type": "constant"},)})
    )
    await slot.put(engine)
    transport = httpx.ASGITransport(app_of(slot))
    body = json.dumps({"scorer": "constant", "items": [ITEM] * 2})
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        small = (await client.post("/v1/rewards", content=body)).json()
        large = (await client.post("/v1/rewards", content=body + " " * 300_000)).json()
    await engine.close()
    for reply in (small, large):
        del reply["id"], reply["timing"]
    assert small == large


@pytest.mark.parametrize("given", ["caller-7", None, "x" * 129, "two words"])
async def test_request_id_is_the_callers_if_it_is_sane(
    client: httpx.AsyncClient, given: str | None
) -> None:
    response = await client.post(
        "/v1/rewards", json=BODY, headers={} if given is None else {"x-request-id": given}
    )
    echoed = response.headers["x-request-id"]
    assert (echoed == given) == (given == "caller-7")
    assert response.json()["id"] == echoed
    assert len(echoed) <= 128


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_a_request_of_a_trace_is_a_line_in_the_log_with_fields_of_its_own(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tokenreward")
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "caller-9"}
    async with httpx.AsyncClient(base_url=served.url, timeout=20) as client:
        await client.post("/v1/rewards", json=BODY, headers=headers)
        await client.get("/v1/no%0Aroute", headers=headers)
    good, bad = (record for record in caplog.records if "trace " in record.getMessage())
    assert f"trace {TRACE}: request caller-9: POST /v1/rewards 200 in " in good.getMessage()
    assert (good.trace_id, good.status) == (TRACE, 200)  # type: ignore[attr-defined]
    assert 0 < good.seconds < 20  # type: ignore[attr-defined]
    assert "GET /v1/no?route 404" in bad.getMessage()


@pytest.mark.parametrize(
    ("traceparent", "is_valid"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-more", True),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-00f067aa0ba902b7", False),
        ("\xe9", False),
        ("", False),
    ],
)
def test_only_a_valid_traceparent_names_a_trace(traceparent: str, is_valid: bool) -> None:
    scope = {"headers": [(b"traceparent", traceparent.encode("latin-1"))]}
    assert trace_of(scope) == (TRACE if is_valid else None)
    assert trace_of({"headers": []}) is None


async def test_probes_are_open_and_the_rest_takes_any_of_the_keys(
    locked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with httpx.AsyncClient(base_url=locked.url, timeout=20) as client:
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v1/scorers", "/metrics"):
            assert (await client.get(path)).status_code == 401
            for key in ("the-first-key", "another-key"):
                assert (
                    await client.get(path, headers={"authorization": f"Bearer {key}"})
                ).status_code == 200
            assert (
                await client.get(path, headers={"authorization": "Basic the-first-key"})
            ).status_code == 401
        refused = await client.post(
            "/v1/rewards", json=BODY, headers={"authorization": "Bearer guessed-key"}
        )
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "guessed-key" not in refused.text + caplog.text
    assert "the-first-key" not in caplog.text


async def test_hang_up_cancels_what_waits_in_the_queue(
    served: Any, client: httpx.AsyncClient
) -> None:
    engine = served.engine
    with served.busy_device():
        first = asyncio.create_task(client.post("/v1/rewards", json=BODY))
        await until(lambda: engine.batcher.queued_items == 1)
        second = asyncio.create_task(client.post("/v1/rewards", json=BODY))
        await until(lambda: engine.batcher.queued_items == 2)
        queued = engine.batcher.waiting[1]
        second.cancel()
        await until(queued.future.cancelled)
        assert not first.done()
    assert (await first).status_code == 200


async def test_unexpected_failure_tells_neither_caller_nor_log_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty:
        scorers: ClassVar[dict[str, Any]] = {}

        async def score(self, request: RewardsRequest, **_: Any) -> Reply:
            raise ValueError(f"cannot handle {request.items[0].response}")

    slot = Slot()
    await slot.put(Faulty())  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app_of(slot))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        response = await client.post(
            "/v1/rewards", json={"scorer": "one", "items": [{**ITEM, "response": "plugh"}]}
        )
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert "plugh" not in response.text + caplog.text
    request_id = response.headers["x-request-id"]
    assert f"`{request_id}`" in response.json()["error"]["message"]
    assert request_id in caplog.text
    assert "ValueError" in caplog.text
    assert "in score" in caplog.text


async def test_requests_are_counted_and_probes_are_not(
    served: Any, client: httpx.AsyncClient
) -> None:
    before = (await client.get("/metrics")).text
    await client.get("/healthz")
    await client.post("/v1/rewards", json=BODY)
    await client.post("/v1/rewards", content=b"{")
    await client.get("/v1/scorers")
    big = {"endogenous": 1e300, "one": 1e300}
    sums = {"scorers": list(big), "combine": big, "items": [{"prompt": [5], "response": [6]}] * 2}
    await client.post("/v1/rewards", json=sums)
    after = (await client.get("/metrics")).text
    for line, grown in {
        'tokenreward_requests_total{deployment="lm",replica="",status="200"}': 3,
        'tokenreward_requests_total{deployment="lm",replica="",status="400"}': 1,
        'tokenreward_errors_total{code="malformed_json"': 1,
        'tokenreward_errors_total{code="non_finite"': 2,
        "tokenreward_request_seconds_count": 3,
        'tokenreward_items_total{deployment="lm",replica="",scorer="endogenous"}': 3,
    }.items():
        assert counted(after, line) - counted(before, line) == grown, line


async def test_callers_who_hang_up_are_counted_and_leave_nothing_in_the_log(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """While they send the body, and while they wait for the answer."""
    address = urlsplit(served.url)
    head = b"POST /v1/rewards HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
    body = json.dumps(BODY).encode()
    line = 'tokenreward_requests_total{deployment="lm",replica="",status="499"}'
    with served.busy_device():
        for sent in (body[:9], body):
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(head % len(body) + sent)
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
        async with httpx.AsyncClient(base_url=served.url) as client:
            text = ""
            while line not in text or counted(text, line) < 2:
                text = (await client.get("/metrics")).text
                await asyncio.sleep(0.02)
    assert 'status="500"' not in text
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_request_under_way_finishes_on_the_old_weights(checkpoint: Path) -> None:
    base = {"name": "lm", "checkpoint": str(checkpoint), "task": "causal_lm", "device": "cpu"}
    settings = {**base, "scorers": ({"type": "endogenous"},)}
    old, new = (
        Engine.load(DeploymentSettings.model_validate({**settings, "version": v})) for v in (1, 2)
    )
    slot = Slot()
    await slot.put(old)
    transport = httpx.ASGITransport(app_of(slot))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        blocked = asyncio.Event()
        loop = asyncio.get_running_loop()
        old.device_thread.submit(
            lambda: asyncio.run_coroutine_threadsafe(blocked.wait(), loop).result()
        )
        under_way = asyncio.create_task(client.post("/v1/rewards", json=BODY))
        await until(lambda: old.worker.busy_since is not None)
        swap = asyncio.create_task(slot.put(new))
        await until(lambda: slot.engine is new)
        after = (await client.post("/v1/rewards", json=BODY)).json()
        assert after["version"] == 2
        assert not swap.done()
        blocked.set()
        before = (await under_way).json()
        await asyncio.wait_for(swap, 5)
    assert (before["version"], before["items"][0]["error"]) == (1, None)
    with pytest.raises(RuntimeError, match="shutdown"):
        old.device_thread.submit(print)
    await new.close()


async def test_old_weights_are_freed_with_the_engine_that_had_them(checkpoint: Path) -> None:
    base = {"name": "lm", "checkpoint": str(checkpoint), "task": "causal_lm", "device": "cpu"}
    settings = DeploymentSettings.model_validate({**base, "scorers": ({"type": "endogenous"},)})
    slot = Slot()
    transport = httpx.ASGITransport(app_of(slot))
    gc.disable()
    try:
        await slot.put(Engine.load(settings))
        old = weakref.ref(slot.engine)
        old_model = weakref.ref(slot.engine.checkpoint.model)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            assert (await client.post("/v1/rewards", json=BODY)).status_code == 200
        await slot.put(Engine.load(settings))
        assert old() is None
        assert old_model() is None
    finally:
        gc.enable()
    await slot.engine.close()
