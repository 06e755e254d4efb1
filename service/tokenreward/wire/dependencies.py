"""Which other scorers a request needs: their answers become fields of its items before its own
scorers read them.

There are two such fields. `credit.kl.reference` names a language model scorer that gives
`ref_logprobs`. The option `score_from` names a scorer that gives `score`. The gateway asks these
scorers; everybody else only has to know that it must.

It knows where a request and a listing name a scorer, and not which scorers exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenreward.errors import InvalidField

if TYPE_CHECKING:
    from tokenreward.wire.head import RequestHead
    from tokenreward.wire.request import RewardsRequest

SCORE_FROM = "score_from"


@dataclass(frozen=True, slots=True)
class Dependency:
    """A scorer that is asked before another one. Two are equal wherever they are named.

    Attributes:
        name: The scorer's name.
        fills: The field of the items that its answer fills.
        param: Where the request names it; None if the operator does, by the scorer's default
            options.
    """

    name: str
    fills: Literal["ref_logprobs", "score"]
    param: str | None = field(default=None, compare=False)


def dependencies(
    options: object, credit: object, *, default: str | None = None, below: str = ""
) -> list[Dependency]:
    """The scorers that one scorer depends on.

    Args:
        options: The options that a request has for it. They need not be checked yet.
        credit: The credit that a request has for it, the same.
        default: What the operator's `score_from` names. The request's own, also a null, replaces
            it.
        below: What stands in paths between the field and its key: ".name" if both are keyed by
            scorer name.

    Raises:
        InvalidField: A name is no string.
    """
    result = []
    reference = _entry(_entry(credit, "kl"), "reference")
    if reference is not None:
        param = f"credit{below}.kl.reference"
        result.append(Dependency(_name(reference, param), "ref_logprobs", param))
    if isinstance(options, Mapping) and SCORE_FROM in options:
        if options[SCORE_FROM] is not None:
            param = f"options{below}.{SCORE_FROM}"
            result.append(Dependency(_name(options[SCORE_FROM], param), "score", param))
    elif default is not None:
        result.append(Dependency(default, "score"))
    return result


def request_dependencies(
    request: RewardsRequest | RequestHead, name: str, *, default: str | None = None
) -> list[Dependency]:
    """The scorers that the scorer `name` depends on in a request. Raises as `dependencies`."""
    if request.scorer is not None:
        return dependencies(request.options, request.credit, default=default)
    options, credit = _entry(request.options, name), _entry(request.credit, name)
    return dependencies(options, credit, default=default, below=f".{name}")


def score_source(options: Mapping[str, Any]) -> str | None:
    """The scorer that an operator's options name in `score_from`; None if they name none."""
    name = options.get(SCORE_FROM)
    return name if isinstance(name, str) else None


def listed_score_source(entry: Mapping[str, Any] | None) -> str | None:
    """The same, of a scorer's entry in `GET /v1/scorers`, which has the operator's options as
    defaults."""
    name = _entry(_entry(_entry(entry, "options"), SCORE_FROM), "default")
    return name if isinstance(name, str) else None


def _name(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidField("must be the name of a scorer, or null", param=param)
    return value


def _entry(value: object, key: str) -> Any:
    """The entry of a map; None if there is none, or no map."""
    return value.get(key) if isinstance(value, Mapping) else None
