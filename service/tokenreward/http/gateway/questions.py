"""Scorers that are asked on behalf of others: the question for each, and what its reply says of the
caller's items.

It knows what stands in a request and a reply, and no HTTP.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenreward.combine import has_ids, has_token_units, refuse_two_tokenizers
from tokenreward.errors import LengthMismatch, RequestError, ScorerFailed
from tokenreward.wire import ErrorDetail, Item, Reply, decode_rewards, renumbered
from tokenreward.wire.dependencies import Dependency

# The fields of an item that a dependency is not asked with. All others may matter to it, those too
# that items are given some day.
_OWN_FIELDS = {"policy_logprobs", "ref_logprobs", "score"}
# A masked unit's log-prob is a log-prob all the same, and it has no steps.
_EXCLUDED_FIELDS = {"ref_logprobs": _OWN_FIELDS | {"mask", "steps"}, "score": _OWN_FIELDS}
_ROLES = {"ref_logprobs": "reference", "score": "score from"}


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
    positions = [index for index, item in enumerate(items) if item.get(dependency.fills) is None]
    questions = []
    for position in positions:
        item = items[position]
        others = _EXCLUDED_FIELDS[dependency.fills]
        if dependency.fills == "score" and item.get("mask") is None:
            others = others | {"spans"}  # units change no score where none is masked
        questions.append({name: item[name] for name in item if name not in others})
    content: dict[str, Any] = {
        "scorer": dependency.name,
        "items": questions,
        "encoding_format": "base64",
    }
    if dependency.fills == "ref_logprobs":
        content |= {"options": log_probs_options, "credit": {"name": "values"}}
    return content, positions


def read_values(
    dependency: Dependency, reply: Reply, positions: Sequence[int]
) -> tuple[Reply, Counter[str]]:
    """Makes a reply to a question one about the caller's items, whose values can be filled in.

    Args:
        dependency: The dependency that answered.
        reply: The reply, which is changed and returned.
        positions: Where its items stand among the caller's.

    Returns:
        The reply, with log-probs as lists. Each item has its value or an error. And how many errors
        items got here, by code; the dependency's deployment has counted all others.

    Raises:
        ValueError: Log-probs are missing or not as they were asked for.
    """
    codes = Counter[str]()
    for item in reply.items:
        if item.error is not None:
            continue
        if dependency.fills == "ref_logprobs":
            if not isinstance(item.rewards, (str, bytes)):
                raise ValueError("log-probs were asked for as base64, or came as msgpack")
            item.rewards = decode_rewards(item.rewards).tolist()
        elif item.score is None:
            item.error = ErrorDetail.of(ScorerFailed("it gives no score"))
            codes[item.error.code] += 1
    return restated_reply(reply, positions, dependency), codes


def restated_reply(
    reply: Reply,
    positions: Sequence[int],
    dependency: Dependency | None = None,
    *,
    fillers: Sequence[Dependency] = (),
) -> Reply:
    """The reply to a request that holds some of the caller's items, which is changed and returned:
    indices and errors are those of the caller's request. Arguments as `restated_detail`."""
    for item in reply.items:
        item.index = positions[item.index]
        for result in item.results():
            if result.error is not None:
                result.error = restated_detail(result.error, positions, dependency, fillers=fillers)
    return reply


def restated_detail(
    detail: ErrorDetail,
    positions: Sequence[int],
    dependency: Dependency | None = None,
    *,
    fillers: Sequence[Dependency] = (),
) -> ErrorDetail:
    """An error of a request that holds some of the caller's items, as one of the caller's request.

    Args:
        detail: The error.
        positions: Where the items of that request stand among the caller's.
        dependency: The dependency whose error it is; None if it is an error of a scorer that the
            caller's request names. Both requests have the params that begin with `items[`; a
            dependency's other params are not in the caller's, and are dropped.
        fillers: The dependencies whose values stand in the items of that request. The caller never
            sent such a field: an error of it is said to be the dependency's.
    """
    message, param = detail.message, detail.param
    for filler in fillers:
        if param is not None and re.match(rf"items\[\d+\]\.{filler.fills}\b", param):
            role = _ROLES[filler.fills]
            message = f"the reply of {role} `{filler.name}` does not fit: {message}"
            if detail.code == LengthMismatch.code:
                message += (
                    "; the two scorers read other tokens: send `spans`, which both count, or name "
                    f"another {role}"
                )
            return replace(detail, message=message, param=filler.param)
    if dependency is not None:
        message = f"{_ROLES[dependency.fills]} `{dependency.name}`: {message}"
        if param is not None and not param.startswith("items["):
            param = None
    if param is not None:
        param = renumbered(param, positions)
    return replace(detail, message=message, param=param)


def restated_error(
    error: RequestError,
    positions: Sequence[int],
    dependency: Dependency | None = None,
    *,
    fillers: Sequence[Dependency] = (),
) -> RequestError:
    """The same for an error that was raised.

    It is a copy: several sub-requests may wait for one call, and each restates its error.
    """
    detail = restated_detail(ErrorDetail.of(error), positions, dependency, fillers=fillers)
    other = type(error).__new__(type(error), detail.message)
    other.__dict__.update(error.__dict__, message=detail.message, param=detail.param)
    return other
