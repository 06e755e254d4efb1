"""What a `score` call asks besides its items, and the part of a request that says it.

It knows the shape of a request. The items are for `items`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from pydantic import Field
from pydantic_core import to_json

from tokenreward.errors import RequestError
from tokenreward.wire import Item, RewardsRequest, parse_json
from tokenreward.wire.dependencies import Dependency, request_dependencies
from tokenreward_client.errors import BadArgument
from tokenreward_client.media import WireName, write_body

DEFAULT_SCORER = "endogenous"


class ScoreOptions(TypedDict, total=False):
    """What a `score` call may say besides its items and the scorer.

    Attributes:
        scorers: Names of several scorers, in place of `scorer`. Each answer then has `scorers`.
        combine: A weight per scorer name, with `scorers`: each answer then also has the weighted
            sum of its rewards.
        options: Options of the scorer, as on the wire; with `scorers` keyed by scorer name.
        credit: How a score becomes rewards, as on the wire; with `scorers` keyed by scorer name.
        return_tokens: Whether answers say which tokens were scored.
        min_version: The lowest version of the weights that will do.
        wait_for_version_s: Seconds that a request waits for `min_version` at the service, before
            its deadline, where it would be refused at once.
        on_error: "raise" (default) raises ItemFailed for the first item that failed, once all are
            done, and at once what ends a request. "return" leaves the error in the item's Rewards:
            its own, or what ended its request, with the service's code where there is one, else
            `deadline_exceeded`, `connection_failed`, `bad_reply` or, from a proxy, `http_502` and
            the like. If no item was answered, what ended the first request is raised all the same.
        timeout_s: The deadline of this call in seconds, in place of the client's.
        fingerprint: Of the tokenizer that made the items' ids:
            `fingerprint(tokenizer.get_vocab())`. Ids are then sent only if every scorer lists the
            same; else BadArgument is raised, or the error that kept the listing away. A scorer
            whose deployment still loads is waited for. Without it ids are trusted.
    """

    scorers: Sequence[str] | None
    combine: Mapping[str, float] | None
    options: Mapping[str, Any] | None
    credit: Mapping[str, Any] | None
    return_tokens: bool
    min_version: int | None
    wait_for_version_s: float | None
    on_error: Literal["raise", "return"]
    timeout_s: float | None
    fingerprint: str | None


class RequestWithoutItems(RewardsRequest):
    """A request before it has items."""

    items: list[Item] = Field(default_factory=list)


def write_head(scorer: str | None, options: ScoreOptions, wire: WireName) -> bytes:
    """The head of a request: all but its items, as JSON.

    Raises:
        BadArgument: Something in it cannot be written.
    """
    names = options.get("scorers")
    if scorer is not None and names is not None:
        raise BadArgument("give `scorer` or `scorers`, not both", param="scorers")
    if isinstance(names, str):
        raise BadArgument("must be a list of names; for one scorer use `scorer`", param="scorers")
    head: dict[str, Any] = {
        "encoding_format": "base64",
        "return_tokens": options.get("return_tokens", False),
    }
    if names is None:
        head["scorer"] = scorer or DEFAULT_SCORER
    else:
        head["scorers"] = list(names)
    for name in ("options", "credit", "combine", "min_version", "wait_for_version_s"):
        value = options.get(name)
        if value is not None:
            head[name] = value
    try:
        content = to_json(head, inf_nan_mode="constants")
        write_body(content, [], wire)  # msgpack has less room for whole numbers than JSON
    except ValueError as error:
        raise BadArgument(f"the request cannot be written as {wire}: {error}") from None
    return content


def check_head(head: bytes) -> tuple[RewardsRequest, list[Dependency]]:
    """Check the head of a request as the service would.

    Returns:
        The request, without items, and the scorers that its scorers depend on.

    Raises:
        BadArgument: The service would refuse it, whatever the items.
    """
    needed: list[Dependency] = []
    try:
        request = parse_json(RequestWithoutItems, head)
        for name in request.names:
            request.credit_of(name)
            request.options_of(name)
            needed += request_dependencies(request, name)
    except RequestError as error:
        raise BadArgument(error.message, param=error.param) from None
    return request, needed
