"""Scorers that are asked on behalf of others: which ones a request needs, the question for each,
and what its reply says of the caller's items.

It knows what stands in a request and a reply, and no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenreward.combine import has_ids, has_token_units, refuse_two_tokenizers
from tokenreward.errors import InvalidField, RequestError, ScorerFailed, UnknownScorer, quotable
from tokenreward.wire import (
    ErrorDetail,
    Item,
    ModelVersion,
    Reply,
    RewardsRequest,
    Timing,
    decode_rewards,
    renumbered,
)
from tokenreward.wire.dependencies import Dependency, request_dependencies
from tokenreward.wire.reply import NO_TIME

_TEXT_FIELDS = ("prompt", "response", "finished", "tools", "chat_template_kwargs")
_ROLES = {"ref_logprobs": "reference", "score": "score from"}


@dataclass(frozen=True, slots=True)
class ScorerRoute:
    """A scorer as the gateway's configuration has it.

    Attributes:
        deployment: Where it is served.
        type: Its file in `scorers/`, or `package.module:Class`.
        score_from: The scorer that it takes its score from, unless a request says otherwise.
    """

    deployment: str
    type: str
    score_from: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DependencyReply:
    """What a dependency's reply says of the items that it was asked about.

    Attributes:
        values: Log-probs or a score, by the caller's index of the item.
        errors: Of the items that have no value, by the same.
        timing: Of its stages.
        source: Whose weights answered; None if nobody was asked.
    """

    values: dict[int, Any] = field(default_factory=dict)
    errors: dict[int, ErrorDetail] = field(default_factory=dict)
    timing: Timing = NO_TIME
    source: ModelVersion | None = None


def find_route(routes: Mapping[str, ScorerRoute], name: str, *, param: str | None) -> ScorerRoute:
    """The route of the scorer that the request names at `param`. Raises UnknownScorer."""
    if name not in routes:
        raise UnknownScorer(
            f"no scorer `{quotable(name)}`; there are {', '.join(routes)}", param=param
        )
    return routes[name]


def dependencies_of(
    request: RewardsRequest, name: str, routes: Mapping[str, ScorerRoute]
) -> tuple[Dependency, ...]:
    """The scorers that the scorer `name` depends on, checked.

    Raises:
        RequestError: One of them is unknown, cannot be asked, or would fill what an item brings.
    """
    request.options_of(name)  # both raise if the entry is wrong
    request.credit_of(name)
    dependencies = request_dependencies(request, name, default=routes[name].score_from)
    for dependency in dependencies:
        param = dependency.param
        if param is None:  # the operator's: checked with the settings
            continue
        route = find_route(routes, dependency.name, param=param)
        if dependency.fills == "score":
            if dependency.name == name:
                raise InvalidField(f"must name another scorer than `{name}` itself", param=param)
            if route.score_from is not None:
                raise InvalidField(
                    f"`{dependency.name}` takes its own score from `{route.score_from}`",
                    param=param,
                )
        for index, item in enumerate(request.items):
            if getattr(item, dependency.fills) is not None:  # one of the two would be lost
                raise InvalidField(
                    f"`{param}` names a scorer to ask for what the item brings",
                    param=f"items[{index}].{dependency.fills}",
                )
    return tuple(dependencies)


def needs_one_tokenizer(dependency: Dependency, item: Item) -> bool:
    """Whether a scorer and its dependency must share a tokenizer: they read ids, or a list that
    counts tokens passes between them."""
    counts_tokens = dependency.fills == "ref_logprobs" or item.mask is not None
    return has_ids(item) or (counts_tokens and has_token_units(item))


def refuse_unlike_units(
    dependency: Dependency, name: str, items: Sequence[Item], tokenizers: Mapping[str, str]
) -> None:
    """Raises UnitsDiffer if the scorer `name` and its dependency would count an item's tokens
    otherwise. `tokenizers`: fingerprints by scorer."""
    refuse_two_tokenizers(
        items,
        {tokenizers[name], tokenizers[dependency.name]},
        concerned=lambda item: needs_one_tokenizer(dependency, item),
        message=f"`{name}` and its {_ROLES[dependency.fills]} `{dependency.name}` have different "
        "tokenizers: give the prompt as text or messages, the response as text, and `spans`",
    )


def question(
    dependency: Dependency,
    items: Sequence[Mapping[str, Any]],
    log_probs_options: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], list[int]]:
    """The question for a dependency.

    Args:
        dependency: The dependency.
        items: All items of the caller, as plain objects.
        log_probs_options: The options under which its values are log-probabilities. Scores come
            under its own.

    Returns:
        The request's plain objects, and the positions of its items among the caller's: those that
        lack the field which it fills.
    """
    fields = list(_TEXT_FIELDS)
    if dependency.fills == "ref_logprobs":
        fields.append("spans")  # and no mask: a masked unit's log-prob is a log-prob all the same
    positions = [index for index, item in enumerate(items) if item.get(dependency.fills) is None]
    questions = []
    for position in positions:
        item = items[position]
        masked = dependency.fills == "score" and item.get("mask") is not None
        names = [*fields, "spans", "mask"] if masked else fields
        questions.append({name: item[name] for name in names if name in item})
    content: dict[str, Any] = {
        "scorer": dependency.name,
        "items": questions,
        "encoding_format": "base64",
    }
    if dependency.fills == "ref_logprobs":
        content |= {"options": log_probs_options, "credit": {"name": "values"}}
    return content, positions


def read_values(dependency: Dependency, reply: Reply, positions: Sequence[int]) -> DependencyReply:
    """What a reply to a question says of the caller's items. Raises ValueError if log-probs are
    missing or not as they were asked for."""
    answer = DependencyReply(
        timing=reply.timing, source=ModelVersion(model=reply.model, version=reply.version)
    )
    for position, item in zip(positions, reply.items, strict=True):
        if item.error is not None:
            answer.errors[position] = restated_detail(item.error, positions, dependency)
        elif dependency.fills == "ref_logprobs":
            if not isinstance(item.rewards, (str, bytes)):
                raise ValueError("log-probs were asked for as base64, or came as msgpack")
            answer.values[position] = decode_rewards(item.rewards).tolist()
        elif item.score is not None:
            answer.values[position] = float(item.score)
        else:
            error = ErrorDetail.of(ScorerFailed("it gives no score"))
            answer.errors[position] = restated_detail(error, positions, dependency)
    return answer


def restated_detail(
    detail: ErrorDetail, positions: Sequence[int], dependency: Dependency | None = None
) -> ErrorDetail:
    """An error of a request that holds some of the caller's items, as one of the caller's request.

    Args:
        detail: The error.
        positions: Where the items of that request stand among the caller's.
        dependency: The dependency whose error it is; None if it is an error of a scorer that the
            caller's request names. Both requests have the params that begin with `items[`; a
            dependency's other params are not in the caller's, and are dropped.
    """
    message, param = detail.message, detail.param
    if dependency is not None:
        message = f"{_ROLES[dependency.fills]} `{dependency.name}`: {message}"
        if param is not None and not param.startswith("items["):
            param = None
    if param is not None:
        param = renumbered(param, positions)
    return replace(detail, message=message, param=param)


def restated_error(
    error: RequestError, positions: Sequence[int], dependency: Dependency | None = None
) -> RequestError:
    """The same for an error that was raised.

    It is a copy: several sub-requests may wait for one call, and each restates its error.
    """
    detail = restated_detail(ErrorDetail.of(error), positions, dependency)
    other = type(error).__new__(type(error), detail.message)
    other.__dict__.update(error.__dict__, message=detail.message, param=detail.param)
    return other
