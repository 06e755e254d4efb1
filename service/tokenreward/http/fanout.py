"""A request that no one deployment answers by itself: its sources are asked first, its parts side
by side, and what comes back is merged into one reply.

A deployment that cannot answer now costs only the results that need it; a request that is wrong for
one is wrong.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tokenreward.combine import combine, has_id_units, refuse_unequal_units
from tokenreward.errors import RequestError
from tokenreward.http.dependencies import NO_TIME
from tokenreward.http.errand import Errand, Outcome
from tokenreward.http.guard import Report, for_size
from tokenreward.http.route import Route
from tokenreward.http.subrequests import NO_USAGE, Part, Reply, failed_item, parts_of, read_content
from tokenreward.http.upstream import Answer, Passage
from tokenreward.wire import RewardsRequest, read_reply, write_reply
from tokenreward.wire.media import JSON


async def fan_out(
    request: RewardsRequest,
    body: bytes,
    routes: Mapping[str, Route],
    *,
    passage: Passage,
    report: Report,
) -> Answer:
    """The merged answer, or the first refusal. `body` is what `request` was read from; errors of
    items that are made here are counted with `report`. Raises RequestError."""
    parts = parts_of(request, routes)
    content = await for_size(len(body), read_content, body, passage.sends)
    errand = Errand(request, content, routes, passage=passage, num_bytes=len(body))
    try:
        if request.combine is not None:
            refuse_unequal_units(request, await _fingerprints(request, errand))
        outcomes = await asyncio.gather(*(errand.outcome(part) for part in parts))
    finally:
        errand.stop()
    for outcome in outcomes:
        if isinstance(outcome, (Answer, RequestError)) and (
            request.scorer is not None or outcome.status < 500
        ):
            if isinstance(outcome, Answer):
                return outcome
            raise outcome
    if passage.wants is not JSON:
        request = request.model_copy(
            update={"encoding_format": "float"}
        )  # base64 is JSON's: arrays go as they are
    merged, codes = await for_size(errand.num_bytes_back, _merged, request, parts, outcomes)
    for code, count in codes.items():
        report("errors_total", count, code=code)
    body = await for_size(
        errand.num_bytes_back, passage.wants.dump, {**merged, "id": passage.request_id}
    )
    return Answer(200, body, {"content-type": passage.wants.name})


async def _fingerprints(request: RewardsRequest, errand: Errand) -> Mapping[str, str]:
    """The tokenizer of each scorer; spans need none."""
    if any(has_id_units(item) for item in request.items):
        return await errand.tokenizers(request.names)
    return dict.fromkeys(request.names, "")


def _merged(
    request: RewardsRequest, parts: Sequence[Part], outcomes: Sequence[Outcome]
) -> tuple[Reply, Mapping[str, int]]:
    """The merged reply, and how many errors of each code no deployment put in it."""
    num_items, codes = len(request.items), Counter[str]()
    replies = []
    for part, outcome in zip(parts, outcomes, strict=True):
        if isinstance(outcome, dict):
            replies.append(outcome)
            continue
        error = _why(outcome)
        codes[error["code"]] += num_items * len(part.names)
        replies.append(_of_all(error, part, num_items))
    merged = replies[0] if request.scorer is not None else merge(replies, request.names)
    if request.combine is not None:
        reply = read_reply({"id": "", **merged})
        codes.update(combine(reply.items, request.combine))
        merged = write_reply(reply, encoding=request.encoding_format)
    return merged, codes


def _why(outcome: Answer | RequestError) -> dict[str, Any]:
    """The error that stands for a part's reply."""
    return (
        outcome.media.load(outcome.body)["error"]
        if isinstance(outcome, Answer)
        else outcome.detail()
    )


def _of_all(error: Mapping[str, Any], part: Part, num_items: int) -> Reply:
    """The reply of a deployment that could not answer: its error in each result."""
    items = [failed_item(index, part.names, error) for index in range(num_items)]
    return {"items": items, "usage": NO_USAGE, "timing": NO_TIME, "sources": {}}


def merge(replies: Sequence[Reply], names: Sequence[str]) -> Reply:
    """One reply: each item has every scorer's result, in the caller's order. Stages ran side by
    side, so the longest counts; tokens were read by each part, so they add up."""
    return {
        "scorer": None,
        "model": None,
        "version": None,
        "items": [
            _merged_item(column, names)
            for column in zip(*(reply["items"] for reply in replies), strict=True)
        ],
        "usage": {key: sum(reply["usage"][key] for reply in replies) for key in NO_USAGE},
        "timing": {key: max(reply["timing"][key] for reply in replies) for key in NO_TIME},
        "sources": {name: source for reply in replies for name, source in reply["sources"].items()},
    }


def _merged_item(column: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
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
