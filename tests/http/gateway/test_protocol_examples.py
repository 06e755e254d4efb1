"""The examples of docs/protocols.md are true: each request has the answer that stands there."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from fakes.pages import page
from tokenreward.config import demo_settings
from tokenreward.demo import checkpoint_path
from tokenreward.deployment.plan import serve_config
from tokenreward.http.gateway.scorer_routes import ScorerRoute
from tokenreward.http.openapi import document
from tokenreward.http.protocols import find_protocols

DOCS = page("docs/protocols.md")
EXAMPLES = re.findall(r"```http\nPOST (\S+)\n(.*?)\n```\n```json\n(.*?)\n```", DOCS, re.DOTALL)
UNLIKE = {"id", "request_id", "created", "model"}  # of each answer, or by the machine


@pytest.fixture(scope="module")
def replicas(serve: Any) -> Any:
    wanted = [d for d in demo_settings().deployments if d.name in ("sft", "rm")]
    parts = [(d.model_dump(exclude={"checkpoint"}), checkpoint_path(d.name)) for d in wanted]
    with serve(*parts) as replicas:
        yield replicas


@pytest.fixture
async def client(replicas: Any, open_gateway: Any) -> AsyncIterator[httpx.AsyncClient]:
    (gateway, *_) = serve_config(demo_settings())["applications"]
    routes = {
        name: ScorerRoute(**route)
        for name, route in gateway["args"]["routes"].items()
        if route["deployment"] in ("sft", "rm")
    }
    async with open_gateway(replicas, routes)() as client:
        yield client


def alike(value: Any, other: Any) -> bool:
    """Whether two answers are the same but for rounding, ids and times."""
    if isinstance(value, dict) and isinstance(other, dict):
        keys = value.keys() - UNLIKE
        return keys == other.keys() - UNLIKE and all(alike(value[k], other[k]) for k in keys)
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(alike, value, other))
    if isinstance(value, float) and isinstance(other, float):
        return abs(value - other) < 1e-3
    return bool(value == other)


@pytest.mark.parametrize(("path", "body", "answer"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
async def test_an_example_has_the_answer_of_the_page(
    client: httpx.AsyncClient, path: str, body: str, answer: str
) -> None:
    response = await client.post(path, content=body)
    assert response.status_code == 200, response.text
    assert alike(response.json(), json.loads(answer)), response.text


def test_every_protocol_has_a_row_with_its_routes_and_an_example() -> None:
    paths_of_examples = {path for path, _, _ in EXAMPLES}
    for protocol in set(find_protocols().values()):
        if protocol.asks_for is None:
            continue
        (row,) = re.findall(rf"^\| `{protocol.name}` \|.*$", DOCS, re.MULTILINE)
        for path in protocol.paths:
            assert path.endswith("/") or f"`POST {path}`" in row
        seconds = f"{protocol.patience_s:g} s"
        assert row.endswith("| to the deadline |" if seconds == "inf s" else f"| {seconds} |")
        assert paths_of_examples & set(protocol.paths), f"no example of `{protocol.name}`"
        bodies = [json.loads(body) for path, body, _ in EXAMPLES if path in protocol.paths]
        assert json.loads(protocol.example) in bodies


def test_the_openapi_document_has_the_same_examples_and_each_protocols_own_errors() -> None:
    for path, protocol in find_protocols().items():
        if protocol.asks_for is None or path.endswith("/"):
            continue
        operation = document()["paths"][path]["post"]
        request = operation["requestBody"]["content"]["application/json"]
        failure = operation["responses"]["default"]["content"]["application/json"]
        assert request["example"] == json.loads(protocol.example)
        assert "it is required" in json.dumps(failure["example"])
