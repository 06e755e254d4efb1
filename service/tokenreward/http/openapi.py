"""The OpenAPI document of the service: every route, its bodies, its examples and its errors.

    document(admin=False) -> {"openapi": "3.1.0", "paths": {...}, "components": {...}}

The schemas are made of the models that read requests and write replies, so that they cannot say
anything else. It knows shapes, and nothing of what a service serves: `GET /v1/scorers` says that.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

import tokenreward
from tokenreward.errors import REQUEST_ERRORS, InvalidField
from tokenreward.http.protocols import Protocol, find_protocols
from tokenreward.wire import Credit, Reply, RewardsRequest
from tokenreward.wire.media import JSON, MSGPACK
from tokenreward.wire.paths import (
    DOCS_PATH,
    HEALTH_PATH,
    HEALTH_PATHS,
    METRICS_PATH,
    MODELS_PATHS,
    OPENAPI_PATH,
    READY_PATH,
    REQUEST_ID_HEADER,
    REWARDS_PATH,
    SCORERS_PATH,
    SEED_SESSION_PATH,
    TIMEOUT_HEADER,
    TOKENIZE_PATH,
    WEIGHTS_PATH,
)
from tokenreward.wire.reply import ErrorDetail
from tokenreward.wire.weights import DeploymentWeights, PushReply, Weights

Document = dict[str, Any]

_REF = "#/components/schemas/{model}"

_INFO: Document = {
    "title": "tokenreward",
    "description": "Rewards per token for reinforcement learning of language models. Every route "
    "is at `/` for all scorers, and below `/d/{deployment}` for those of one deployment.",
    "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
}
_OF_LISTINGS = (401, 422, 500, 503, 504)  # a deployment may not answer; a deadline may be none
_BEARER: Document = {"type": "http", "scheme": "bearer"}
_EXAMPLES: dict[str, Document] = {
    "text": {
        "scorer": "endogenous",
        "items": [{"prompt": "The capital of France is", "response": " Paris."}],
    },
    "messages": {
        "scorer": "reward_model",
        "items": [
            {"prompt": [{"role": "user", "content": "2+2?"}], "response": "It is 4."},
            {"prompt": [{"role": "user", "content": "2+2?"}], "response": "It is 5."},
        ],
        "credit": {"name": "last"},
    },
    "ids": {
        "scorer": "endogenous",
        "items": [{"prompt": [5, 6, 7], "response": [8, 9, 10]}],
        "encoding_format": "base64",
    },
}
_REPLY: Document = {
    "id": "3f2a",
    "scorer": "endogenous",
    "model": "demo:sft",
    "version": 1,
    "items": [{"index": 0, "rewards": [-1.25, 0.5], "score": -0.75, "error": None}],
    "usage": {"prompt_tokens": 5, "response_tokens": 2},
    "timing": {"queue_s": 0.002, "tokenize_s": 0.0004, "compute_s": 0.011},
}
_ERROR: Document = {
    "error": {
        "code": "unknown_scorer",
        "message": "`endogenus` is not served; there are `endogenous`, `reward_model`",
        "param": "scorer",
        "retryable": False,
    }
}


def document(*, admin: bool = False) -> Document:
    """The whole document, of plain objects.

    Args:
        admin: Whether the routes that change weights are in it.
    """
    protocols = find_protocols()
    del protocols[REWARDS_PATH]  # our own, which says more
    paths = [path for path in sorted(protocols) if not path.endswith("/")]  # the same as without
    foreign = {path: {"post": _foreign(protocols[path], path)} for path in paths}
    schemes = {"key": _BEARER, "admin_key": _BEARER} if admin else {"key": _BEARER}
    return {
        "openapi": "3.1.0",
        "info": {**_INFO, "version": tokenreward.__version__},
        "paths": {
            REWARDS_PATH: {"post": _rewards()},
            **foreign,
            **_others(),
            **({WEIGHTS_PATH: _weights()} if admin else {}),
        },
        "components": {
            "schemas": _schemas(*((Weights, PushReply, DeploymentWeights) if admin else ())),
            "securitySchemes": schemes,
        },
        "security": [{}, {"key": []}],  # a service without API keys takes any caller
    }


def _others() -> Document:
    """By path, the routes that neither ask for rewards nor change weights."""
    return {
        SCORERS_PATH: {
            "get": _get("list_scorers", "What is served, and with which options.", *_OF_LISTINGS)
        },
        HEALTH_PATH: {"get": _get("health", "200 while the process lives.")},
        READY_PATH: {
            "get": _get("ready", "200 once every deployment has loaded and answers.", 503)
        },
        TOKENIZE_PATH: {"post": _tokenize()},
        SEED_SESSION_PATH: {
            "post": _get("seed_session", "NeMo-Gym's agents want 200 before `/verify`.", 401)
        },
        HEALTH_PATHS[0]: {
            "get": _get("answers", "200 wherever the models are listed, as in vLLM.", *_OF_LISTINGS)
        },
        MODELS_PATHS[0]: {
            "get": _get("list_models", "The models behind the scorers, as in vLLM.", *_OF_LISTINGS)
        },
        METRICS_PATH: {"get": _get("metrics", "Prometheus text.", 401, media="text/plain")},
        OPENAPI_PATH: {"get": _get("openapi", "This document.")},
        DOCS_PATH: {"get": _get("docs", "This document, as a page.", media="text/html")},
    }


def _schemas(*others: type[Any]) -> Document:
    """The models of a request, of a reply and of an error, and `others`, by name."""
    adapters: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        (model.__name__, "validation", TypeAdapter(model))
        for model in (RewardsRequest, Credit, Reply, ErrorDetail, *others)
    ]
    _, schema = TypeAdapter.json_schemas(adapters, ref_template=_REF)
    schemas: Document = schema["$defs"]
    credit = {"$ref": _REF.format(model=Credit.__name__)}
    schemas[RewardsRequest.__name__]["properties"]["credit"] |= {
        "description": "That of `scorer`; or, by name, those of `scorers`.",
        "anyOf": [credit, {"type": "object", "additionalProperties": credit}],
    }
    schemas["Error"] = {
        "type": "object",
        "properties": {"error": {"$ref": _REF.format(model=ErrorDetail.__name__)}},
        "required": ["error"],
    }
    return schemas


def _rewards() -> Document:
    request = {"schema": {"$ref": _REF.format(model=RewardsRequest.__name__)}}
    reply = {"schema": {"$ref": _REF.format(model=Reply.__name__)}}
    examples = {name: {"value": example} for name, example in _EXAMPLES.items()}
    return {
        "operationId": "score",
        "summary": "Rewards per token.",
        "description": RewardsRequest.__doc__,
        "parameters": [
            _header(REQUEST_ID_HEADER, "Echoed, and named in the log.", {"type": "string"}),
            _header(TIMEOUT_HEADER, "The caller's deadline in seconds.", {"type": "number"}),
        ],
        "requestBody": {
            "required": True,
            "content": {JSON.name: {**request, "examples": examples}, MSGPACK.name: request},
        },
        "responses": {
            "200": {
                "description": "Rewards, or an error, for each item.",
                "content": {JSON.name: {**reply, "example": _REPLY}, MSGPACK.name: reply},
            },
            **dict(_failures()),
        },
    }


def _foreign(protocol: type[Protocol], path: str) -> Document:
    """A route of a protocol whose bodies another program has defined: its module says in words what
    they are."""
    summary, _, description = (inspect.getdoc(inspect.getmodule(protocol)) or "").partition("\n\n")
    request: Document = {"schema": {"type": "object"}}
    if protocol.example:
        request["example"] = JSON.load(protocol.example.encode())
    error = InvalidField("it is required", param="items[0].response")
    _, body = protocol({}).write_error(error)
    failure = {JSON.name: {"schema": {}, "example": JSON.load(body)}}
    return {
        "operationId": protocol.__name__ + path.replace("/", "_"),
        "summary": summary,
        "description": description,
        "requestBody": {"required": True, "content": {JSON.name: request}},
        "responses": {
            "200": {
                "description": "As that program reads it.",
                "content": {JSON.name: {"schema": {}}},
            },
            "default": {"description": "A failure, as that program reads it.", "content": failure},
        },
    }


def _tokenize() -> Document:
    answer = {JSON.name: {"schema": {"type": "object"}}}
    return {
        "operationId": "tokenize",
        "summary": "The token ids of a text, as vLLM gives them.",
        "requestBody": {
            "required": True,
            "content": {JSON.name: {"schema": {"type": "object"}, "example": {"prompt": "2+2?"}}},
        },
        "responses": {"200": {"description": "The ids.", "content": answer}, **dict(_failures())},
    }


def _weights() -> Document:
    """The route that changes the weights of a deployment and shows them."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}

    def operation(operation_id: str, summary: str, reply: type[Any]) -> Document:
        schema = {"schema": {"$ref": _REF.format(model=reply.__name__)}}
        answer = {"description": summary, "content": {JSON.name: schema}}
        return {
            "operationId": operation_id,
            "summary": summary,
            "description": inspect.cleandoc(reply.__doc__ or ""),
            "parameters": [name],
            "security": [{"admin_key": []}],
            "responses": {"200": answer, **dict(_failures())},
        }

    request = {
        "schema": {"$ref": _REF.format(model=Weights.__name__)},
        "example": {"checkpoint": "/checkpoints/step-200", "version": 200},
    }
    push = operation("push_weights", "Changes the weights of a deployment.", PushReply)
    push["requestBody"] = {"required": True, "content": {JSON.name: request}}
    show = "The weights of a deployment: pushed, declared, and what each replica serves."
    return {"get": operation("show_weights", show, DeploymentWeights), "post": push}


def _failures() -> Iterator[tuple[str, Document]]:
    """By status, what the service answers to a request that it refuses."""
    codes: dict[int, list[str]] = {}
    for kind in REQUEST_ERRORS.values():
        codes.setdefault(kind.status, []).append(f"`{kind.code}`")
    schema = {"schema": {"$ref": _REF.format(model="Error")}, "example": _ERROR}
    for status, names in sorted(codes.items()):
        yield str(status), {"description": ", ".join(names), "content": {JSON.name: schema}}


def _get(operation: str, summary: str, *failures: int, media: str = JSON.name) -> Document:
    content = {media: {"schema": {"type": "object" if media == JSON.name else "string"}}}
    responses = {"200": {"description": summary, "content": content}}
    responses |= {status: entry for status, entry in _failures() if int(status) in failures}
    return {"operationId": operation, "summary": summary, "responses": responses}


def _header(name: str, description: str, schema: Document) -> Document:
    return {"name": name, "in": "header", "description": description, "schema": schema}
