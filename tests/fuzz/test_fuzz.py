"""The short form of `make fuzz`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fakes import web
from fuzz.run import fuzz, request_of
from fuzz.service import PREFIXES, serving, valid_bodies
from tokenreward.http.protocols import find_protocols

NUM_REQUESTS = 1000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("fuzz")) as url:
        yield url


async def test_requests_that_are_nearly_right_have_an_answer_and_no_500(service: str) -> None:
    report = await fuzz(service, NUM_REQUESTS, seed=1)
    assert report.failures == []
    assert report.statuses.total() == NUM_REQUESTS
    assert report.statuses[200] > NUM_REQUESTS / 20
    assert report.statuses[422] > NUM_REQUESTS / 20
    assert max(report.health_s) < 5


def test_a_request_is_told_by_its_number_and_covers_each_route() -> None:
    bodies = valid_bodies()
    requests = [request_of(number, 3, bodies) for number in range(3000)]
    assert request_of(7, 3, bodies) == requests[7] != request_of(7, 4, bodies)
    paths = {path for _, path, _, _ in requests}
    for path in find_protocols():
        assert {path, f"/d/lm{path}", f"/d/rm{path}"} & paths


async def test_a_500_and_a_missing_answer_are_found() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        status = 200 if scope["path"] == "/healthz" else 500
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    with web.serving(broken) as url:
        report = await asyncio.wait_for(fuzz(url, 20, seed=1, num_callers=2), 30)
    assert len(report.failures) == report.statuses[500] >= 19


ODD_PART = {"type": ["output_text"], "text": "It is 4."}  # a type that has no hash
ODD = {"role": "user", "content": [ODD_PART]}
ANSWER = {"type": "message", "role": "assistant", "content": "It is 4."}
VERIFY: dict[str, Any] = {
    "responses_create_params": {"input": [{"role": "user", "content": "2+2?"}]},
    "response": {"output": [ANSWER]},
}
# Each had a 500, as a run of many requests found.
FOUND: list[tuple[str, Any]] = [
    ("/verify", {**VERIFY, "a": json.loads("[" * 280 + "]" * 280)}),
    ("/v1/rewards", {"scorer": "constant", "items": [{"prompt": [ODD], "response": [ODD]}]}),
    ("/v1/completions", {"model": "m", "prompt": [[0, 2**31]], "max_tokens": 1}),
    ("/generate", {"input_ids": [0, 2**64], "return_logprob": True, "logprob_start_len": 0}),
    ("/v1/embeddings", {"model": "rm", "input": [255, 10**40]}),
    ("/score", {"model": "rm", "text_1": "2+2?", "text_2": []}),
    ("/verify", {**VERIFY, "response": {"output": [{**ANSWER, "content": [ODD_PART]}]}}),
]


@pytest.mark.parametrize(("path", "body"), FOUND, ids=range(len(FOUND)))
async def test_what_had_a_500_once_has_none(service: str, path: str, body: Any) -> None:
    async with httpx.AsyncClient(base_url=service) as client:
        for prefix in PREFIXES:
            answer = await client.post(prefix + path, json=body)
            assert answer.status_code < 500, answer.text
