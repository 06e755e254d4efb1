"""`GET /openapi.json` and `GET /docs`: they say what the service reads and answers, and nothing
else."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_python_client import Config, generate
from openapi_python_client.config import ConfigFile, MetaType
from starlette.routing import Route

from tokenreward.engine.slot import Slot
from tokenreward.errors import RequestError
from tokenreward.http.app import build_app
from tokenreward.http.openapi import document
from tokenreward.http.page import docs_page
from tokenreward.http.replica import ReplicaBackend
from tokenreward.http.request_limits import Limits
from tokenreward.metrics import Metrics
from tokenreward.wire import RewardsRequest, parse, read_reply
from tokenreward.wire.paths import HOLD_HEADER

ITEM = {"prompt": "2+2?", "response": "It is 4."}
DOCUMENT = document()
SCORE = DOCUMENT["paths"]["/v1/rewards"]["post"]


def refuse_unlike(name: str, content: Any) -> None:
    """Raises if an object does not fit the schema of this name."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(content)


def test_every_route_and_method_is_in_the_document() -> None:
    limits = Limits(max_body_bytes=1, max_request_items=1, request_timeout_s=1.0)
    app = build_app(ReplicaBackend("lm", Slot(), metrics=Metrics(), limits=limits))
    routes = {
        (route.path.rstrip("/") or "/", method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = DOCUMENT["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == routes


def test_every_reference_leads_to_a_schema() -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert names == set(DOCUMENT["components"]["schemas"])


def test_every_status_of_a_refusal_is_in_the_document() -> None:
    statuses = {str(kind.status) for kind in RequestError.__subclasses__()}
    assert set(SCORE["responses"]) == statuses | {"200"}


@pytest.mark.parametrize("path", DOCUMENT["paths"])
async def test_a_missing_key_and_weights_that_load_are_answered_as_the_document_says(
    locked: Any, loading: str, path: str
) -> None:
    ((method, operation),) = DOCUMENT["paths"][path].items()
    for url in (locked.url, loading):
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            answer = await client.request(method, path, headers={HOLD_HEADER: "0"})
        assert operation["responses"].keys() & {str(answer.status_code), "default"}


@pytest.mark.parametrize("name", SCORE["requestBody"]["content"]["application/json"]["examples"])
def test_examples_of_requests_are_requests(name: str) -> None:
    example = SCORE["requestBody"]["content"]["application/json"]["examples"][name]["value"]
    refuse_unlike("RewardsRequest", example)
    parse(RewardsRequest, example)


def test_the_example_of_a_reply_is_a_reply() -> None:
    example = SCORE["responses"]["200"]["content"]["application/json"]["example"]
    refuse_unlike("Reply", example)
    read_reply(example)


@pytest.mark.parametrize(
    "body",
    [
        {"scorer": "endogenous", "items": [ITEM]},
        {"scorer": "endogenous", "items": [ITEM], "encoding_format": "base64"},
        {"scorer": "endogenous", "items": [ITEM], "credit": {"name": "uniform"}},
        {"scorers": ["endogenous", "one"], "items": [ITEM], "return_tokens": True},
        {"scorer": "endogenous", "items": [{**ITEM, "response": ""}, ITEM]},
    ],
)
async def test_requests_and_their_replies_fit_the_schemas(served: Any, body: Any) -> None:
    refuse_unlike("RewardsRequest", body)
    async with httpx.AsyncClient(base_url=served.url) as client:
        response = await client.post("/v1/rewards", json=body)
    assert response.status_code == 200
    refuse_unlike("Reply", response.json())


async def test_an_error_fits_the_schema(served: Any) -> None:
    async with httpx.AsyncClient(base_url=served.url) as client:
        response = await client.post("/v1/rewards", json={"scorer": "nobody", "items": [ITEM]})
    assert response.status_code == 404
    refuse_unlike("Error", response.json())


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client that openapi-python-client made of the document."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(DOCUMENT))
    config = Config.from_sources(
        ConfigFile(package_name_override="generated_client", post_hooks=[]),
        MetaType.NONE,
        document_source=folder / "openapi.json",
        file_encoding="utf-8",
        overwrite=False,
        output_path=folder / "generated_client",
    )
    problems = generate(config=config)
    # It writes no msgpack, which it says.
    assert all("msgpack" in (problem.detail or "") for problem in problems), problems
    sys.path.insert(0, str(folder))
    yield importlib.import_module("generated_client")
    sys.path.remove(str(folder))


def test_a_generated_client_scores_an_item(served: Any, generated: Any) -> None:
    module = importlib.import_module("generated_client.api.default.score")
    models = importlib.import_module("generated_client.models")
    request = models.RewardsRequest(
        scorer="endogenous", items=[models.Item(prompt="2+2?", response="It is 4.")]
    )
    with generated.Client(base_url=served.url) as client:
        reply = module.sync(client=client, body=request)
    body = {"scorer": "endogenous", "items": [ITEM]}
    native = httpx.post(f"{served.url}/v1/rewards", json=body).json()["items"][0]
    assert reply.items[0].rewards == pytest.approx(native["rewards"], abs=1e-6)
    assert reply.items[0].score == pytest.approx(native["score"], abs=1e-6)


async def test_the_document_and_the_page_need_no_key(locked: Any) -> None:
    async with httpx.AsyncClient(base_url=locked.url) as client:
        assert (await client.get("/openapi.json")).json() == DOCUMENT
        page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == docs_page(DOCUMENT)


def test_the_page_loads_nothing_and_names_every_route_and_field() -> None:
    page = docs_page(DOCUMENT)
    assert not re.search(r"<script|<link|<img|<iframe|@import|\bsrc=|url\(", page)
    assert set(re.findall(r'href="([^"]*)"', page)) <= {
        f"#{name}" for name in DOCUMENT["components"]["schemas"]
    }
    for path in DOCUMENT["paths"]:
        assert f" {path} <small>" in page
    for schema in DOCUMENT["components"]["schemas"].values():
        for name in schema["properties"]:
            assert f"<code>{name}</code>" in page


def test_text_of_a_document_is_no_markup() -> None:
    evil = {
        "info": {"title": "<b>", "version": "1", "description": "<script>x</script>"},
        "paths": {},
        "components": {"schemas": {}},
    }
    assert "<script>" not in docs_page(evil)
