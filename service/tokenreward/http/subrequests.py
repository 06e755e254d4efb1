"""The requests that one request falls into: a part for each deployment and each set of sources, and
the reply to it.

Items travel with what their sources told; those whose source failed stay behind, with its error. It
knows what stands in bodies, and no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json

from tokenreward.errors import InternalError, MalformedJson
from tokenreward.http.dependencies import NO_TIME, Source, Told, renumbered_error, sources_of
from tokenreward.http.route import Route
from tokenreward.http.upstream import Answer
from tokenreward.wire import ErrorDetail, RewardsRequest, Timing, Usage
from tokenreward.wire.media import JSON, Media

Content = Mapping[str, Any]
Reply = dict[str, Any]

NO_USAGE = {"prompt_tokens": 0, "response_tokens": 0}


@dataclass(frozen=True, slots=True)
class Part:
    """Scorers of one deployment whose items are filled by the same sources."""

    deployment: str
    names: tuple[str, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A part's body. `positions`: the caller's items that it holds; `errors`: of those that it
    cannot hold."""

    body: bytes
    positions: list[int]
    errors: dict[int, dict[str, Any]]


def parts_of(request: RewardsRequest, routes: Mapping[str, Route]) -> list[Part]:
    """The parts, in the order in which the caller named their first scorers. Raises as
    `sources_of`."""
    grouped: dict[tuple[str, tuple[Source, ...]], list[str]] = {}
    for name in request.names:
        grouped.setdefault((routes[name].deployment, sources_of(request, name, routes)), []).append(
            name
        )
    return [
        Part(deployment, tuple(names), sources) for (deployment, sources), names in grouped.items()
    ]


def read_content(body: bytes, media: Media) -> Content:
    """The body as plain objects. Raises MalformedJson."""
    try:
        content: Content = media.load(body)
    except ValueError as error:  # it nests less deep than the request may
        raise _cannot_be_split(error) from None
    return content


def written(content: object, media: Media) -> bytes:
    """Plain objects as a body. Raises MalformedJson.

    Numbers that orjson knows not (NaN, 1e999, beyond 64 bits) reach the deployments as they came:
    theirs to refuse.
    """
    try:
        return to_json(content, inf_nan_mode="constants") if media is JSON else media.dump(content)
    except ValueError as error:  # as deep as above
        raise _cannot_be_split(error) from None


def _cannot_be_split(error: ValueError) -> MalformedJson:
    return MalformedJson(f"the body cannot be split: {type(error).__name__}")


def draft(content: Content, part: Part, answers: Mapping[Source, Told], media: Media) -> Draft:
    """The part as a body of its own: its scorers, and the items that its sources told enough of.
    Raises MalformedJson."""
    errors: dict[int, dict[str, Any]] = {}
    for source in part.sources:
        errors = {**answers[source].errors, **errors}
    items = content["items"]
    positions = [index for index in range(len(items)) if index not in errors]
    filled = items
    if part.sources:
        filled = [_filled(items[index], index, part.sources, answers) for index in positions]
    return Draft(written({**_head(content, part), "items": filled}, media), positions, errors)


def _filled(
    item: Mapping[str, Any], index: int, sources: Sequence[Source], answers: Mapping[Source, Told]
) -> dict[str, Any]:
    values = {source.fills: answers[source].values for source in sources}
    return {**item, **{name: given[index] for name, given in values.items() if index in given}}


def _head(content: Content, part: Part) -> dict[str, Any]:
    """All but the items and what the front does itself."""
    head = {key: value for key, value in content.items() if key not in ("items", "combine")}
    filled: set[str] = {source.fills for source in part.sources}
    if content.get("scorers") is None:
        options, credit = _settled(content.get("options", {}), content.get("credit", {}), filled)
        return {**head, "options": options, "credit": credit}
    keyed: dict[str, dict[str, Any]] = {"options": {}, "credit": {}}
    for name in part.names:
        options, credit = (content.get(field, {}).get(name, {}) for field in keyed)
        keyed["options"][name], keyed["credit"][name] = _settled(options, credit, filled)
    return {**head, "scorers": list(part.names), **keyed}


def _settled(
    options: dict[str, Any], credit: dict[str, Any], filled: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A scorer's options and credit without the sources that have been asked; null overrides an
    operator's default."""
    if "score" in filled:
        options = {**options, "score_from": None}
    if "ref_logprobs" in filled:
        credit = {
            **credit,
            "kl": {key: value for key, value in credit["kl"].items() if key != "reference"},
        }
    return options, credit


class _ResultShape(BaseModel):
    model_config = ConfigDict(strict=True)

    score: float | None = None
    error: ErrorDetail | None = None


class _ItemShape(_ResultShape):
    index: int
    scorers: dict[str, _ResultShape] | None = None


class _Shape(BaseModel):
    """As much of a reply as has to be there."""

    items: list[_ItemShape]
    usage: Usage
    timing: Timing


def read_reply(answer: Answer, deployment: str, num_items: int, names: Sequence[str] = ()) -> Reply:
    """A deployment's reply about `num_items` items; `names`: the scorers that its results are keyed
    by. Raises InternalError: it is none."""
    try:
        reply: Reply = answer.media.load(answer.body)
        shape = _Shape.model_validate(reply)
    except ValueError:
        raise no_reply(deployment) from None
    in_order = [item.index for item in shape.items] == list(range(num_items))
    if not in_order or not all((item.scorers or {}).keys() >= set(names) for item in shape.items):
        raise no_reply(deployment)
    return {**reply, "usage": asdict(shape.usage), "timing": asdict(shape.timing)}


def no_reply(deployment: str) -> InternalError:
    return InternalError(
        f"`{deployment}` answered 200 with a body that is no reply to what it was asked"
    )


def completed(
    reply: Reply, part: Part, draft: Draft, answers: Mapping[Source, Told], *, keyed: bool
) -> Reply:
    """A part's reply about all the caller's items; its sources' stages came before its own."""
    items = {
        draft.positions[item["index"]]: _moved(item, draft.positions) for item in reply["items"]
    }
    for index, error in draft.errors.items():
        items[index] = failed_item(index, part.names if keyed else None, error)
    slowest = {
        key: max((answers[source].timing[key] for source in part.sources), default=0.0)
        for key in NO_TIME
    }
    timing = {key: reply["timing"][key] + slowest[key] for key in NO_TIME}
    told = {
        source.name: answers[source]
        for source in part.sources
        if answers[source].version is not None
    }
    sources = {
        name: {"model": answer.model, "version": answer.version} for name, answer in told.items()
    }
    return {
        **reply,
        "items": [items[index] for index in sorted(items)],
        "timing": timing,
        "sources": sources,
    }


def _moved(item: dict[str, Any], positions: Sequence[int]) -> dict[str, Any]:
    """An item of a shorter request at its place in the caller's."""
    for result in (item, *(item.get("scorers") or {}).values()):
        if result.get("error") is not None:
            result["error"] = renumbered_error(result["error"], positions)
    return {**item, "index": positions[item["index"]]}


def failed_item(
    index: int, names: Sequence[str] | None, error: Mapping[str, Any]
) -> dict[str, Any]:
    """What stands for a result that no deployment gave; keyed by `names` if there are any."""
    result = {"rewards": None, "score": None, "error": error}
    if names is None:
        return {"index": index, **result, "tokens": None}
    return {
        "index": index,
        "scorers": {name: {**result, "model": None, "version": None} for name in names},
    }
