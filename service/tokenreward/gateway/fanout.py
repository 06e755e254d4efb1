"""A request for scorers of several deployments: split into one part each, asked side by side, merged into one reply.

A deployment that cannot answer now costs its own scorers' results only; a request that is wrong for one is wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from pydantic_core import from_json, to_json

from tokenreward.combine import combine, has_id_units, refuse_unequal_units
from tokenreward.errors import MalformedJson, RequestError
from tokenreward.gateway.upstream import Answer, Passage
from tokenreward.guard import for_size
from tokenreward.wire import RewardsRequest

Reply = dict[str, Any]
Parts = Mapping[str, Sequence[str]]  # deployment -> the scorers asked of it


async def fan_out(request: RewardsRequest, body: bytes, asked: Parts, *, passage: Passage, request_id: str) -> Answer:
    """The merged answer, or the first refusal. `body` is what `request` was read from. Raises RequestError."""
    for name in request.names:  # an entry for a scorer that is not asked is lost in the parts: refuse it here
        request.options_of(name)
        request.credit_of(name)
    if request.combine is not None:
        refuse_unequal_units(request, await _fingerprints(request, asked, passage))
    bodies = await for_size(len(body), split, body, asked)
    answers = await asyncio.gather(*(_outcome(passage, name, part) for name, part in bodies.items()))
    for answer in answers:
        if isinstance(answer, Answer) and answer.status != 200:
            return answer
    num_bytes = sum(len(answer.body) for answer in answers if isinstance(answer, Answer))
    content = await for_size(num_bytes, _merged_body, answers, asked, request, request_id)
    return Answer(200, content, {"content-type": "application/json"})


def _merged_body(
    answers: Sequence[Answer | dict[str, Any]], asked: Parts, request: RewardsRequest, request_id: str
) -> bytes:
    replies = [
        orjson.loads(answer.body) if isinstance(answer, Answer) else failed(names, answer, len(request.items))
        for names, answer in zip(asked.values(), answers, strict=True)
    ]
    reply = merge(replies, request.names, request_id=request_id)
    if request.combine is not None:
        combine(reply["items"], request)
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


async def _fingerprints(request: RewardsRequest, asked: Parts, passage: Passage) -> dict[str, str]:
    """The tokenizer of each scorer; spans need none."""
    if not any(has_id_units(item) for item in request.items):
        return dict.fromkeys(request.names, "")
    listings = await asyncio.gather(*(passage.scorers(deployment) for deployment in asked))
    return {entry["name"]: entry["tokenizer"] for entries in listings for entry in entries}


async def _outcome(passage: Passage, deployment: str, body: bytes) -> Answer | dict[str, Any]:
    """The answer, or the error body of a deployment that cannot answer now."""
    try:
        answer = await passage.post(deployment, body)
    except RequestError as error:
        return error.detail()
    return answer if answer.status < 500 else dict(orjson.loads(answer.body)["error"])


def split(body: bytes, asked: Parts) -> dict[str, bytes]:
    """One body per deployment: the same items, its own scorers, options and credits. Raises MalformedJson.

    Numbers that orjson knows not (NaN, 1e999, beyond 64 bits) reach the deployments as they came: theirs to refuse.
    """
    try:
        content = from_json(body)
        parts = {deployment: _part(content, names) for deployment, names in asked.items()}
        return {deployment: to_json(part, inf_nan_mode="constants") for deployment, part in parts.items()}
    except ValueError as error:  # both nest less deep than the request may
        raise MalformedJson(f"the body cannot be split: {type(error).__name__}") from None


def _part(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    own = {field: _only(content[field], names) for field in ("options", "credit") if field in content}
    shared = {key: value for key, value in content.items() if key != "combine"}
    return {**shared, "scorers": list(names), **own}


def _only(keyed: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: keyed[name] for name in names if name in keyed}


def failed(names: Sequence[str], detail: dict[str, Any], num_items: int) -> Reply:
    """What stands for the reply of a deployment that could not answer: its error in each of its results."""
    result = {"rewards": None, "score": None, "error": detail, "model": None, "version": None}
    return {"items": [{"index": index, "scorers": dict.fromkeys(names, result)} for index in range(num_items)]}


def merge(replies: Sequence[Reply], names: Sequence[str], *, request_id: str) -> Reply:
    """One reply: each item has every scorer's result, in the caller's order. Stages ran side by side, so the longest
    counts; tokens were read by each deployment, so they add up."""
    return {
        "id": request_id,
        "scorer": None,
        "model": None,
        "version": None,
        "items": [_merged(column, names) for column in zip(*(reply["items"] for reply in replies), strict=True)],
        "usage": _fold(replies, "usage", ("prompt_tokens", "response_tokens"), sum),
        "timing": _fold(replies, "timing", ("queue_s", "tokenize_s", "compute_s"), max),
    }


def _merged(column: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    results = {name: result for part in column for name, result in part["scorers"].items()}
    shown = [part["tokens"] for part in column if part.get("tokens") is not None]
    return {
        "index": column[0]["index"],
        "rewards": None,
        "score": None,
        # Deployments with other tokenizers scored other tokens: then no one list is the item's.
        "tokens": shown[0] if shown and all(tokens == shown[0] for tokens in shown) else None,
        "error": None,
        "scorers": {name: results[name] for name in names},
    }


def _fold(replies: Sequence[Reply], field: str, keys: Sequence[str], fold: Callable[[list[Any]], Any]) -> Reply:
    return {key: fold([reply[field][key] for reply in replies if field in reply] or [0]) for key in keys}
