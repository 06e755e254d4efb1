"""What several protocols say of a reply and of an error, and how they read one or many inputs.

It knows replies, and no program's bodies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import Field

from tokenreward.errors import InternalError, InvalidField, RequestError, TooManyItems
from tokenreward.wire import Item, ItemResult, Reply, parse
from tokenreward.wire.limits import MAX_ITEMS

T = TypeVar("T")

# A list of a body. Reading it stops at the first wrong entry: a body of megabytes has millions, and
# where a field takes several kinds of lists, all of its entries are wrong for each kind but one.
ListOf = Annotated[list[T], Field(fail_fast=True)]


def as_list(value: object) -> object:
    """A text as a list of it; any other value as it is. For fields that take one or many."""
    return [value] if isinstance(value, str) else value


def refuse_many(inputs: Sequence[Any], param: str) -> None:
    """Refuses a list before an item is made of each entry.

    Raises:
        TooManyItems: It has more entries than any service takes. The service's own limit may be
            lower, and is checked with the items.
    """
    if len(inputs) > MAX_ITEMS:
        raise TooManyItems(f"there are {len(inputs)}, the limit is {MAX_ITEMS}", param=param)


def item_at(place: str, **fields: Any) -> Item:
    """An item of these fields. Raises RequestError, at this place in the protocol's own body."""
    try:
        return parse(Item, fields)
    except RequestError as error:
        error.param = place
        raise


def check_items(reply: Reply, field: str | None) -> list[ItemResult]:
    """The results of a reply in whose protocol no item can fail alone.

    Args:
        reply: The reply.
        field: What the protocol calls its items, of which an error names one. None for a protocol
            of one item, whose own path an error has.

    Raises:
        InvalidField: An item is wrong.
        InternalError: An item failed, and may not fail again.
    """
    for item in reply.items:
        if item.error is not None:
            kind = InternalError if item.error.retryable else InvalidField
            message = f"{item.error.message} ({item.error.code})"
            param = item.error.param if field is None else f"{field}[{item.index}]"
            raise kind(message, param=param)
    return reply.items


def scores_of(reply: Reply, field: str | None) -> list[float]:
    """The score of each item. Arguments and errors as `check_items`; a score that is missing or not
    finite is an InternalError, and never a number."""
    scores = []
    for item in check_items(reply, field):
        if item.score is None or not math.isfinite(item.score):
            param = None if field is None else f"{field}[{item.index}]"
            raise InternalError("the scorer gives no score", param=param)
        scores.append(item.score)
    return scores


def detail_of(error: RequestError, field: str) -> dict[str, Any]:
    """An error in a few words of JSON, whose place is in the protocol's own body."""
    return {"code": error.code, "message": error.message, "param": param_of(error, field)}


def param_of(error: RequestError, field: str) -> str | None:
    """The place of an error in a protocol's own body, where `items` are called `field`."""
    return (error.param or "").replace("items[", f"{field}[", 1) or None


def own_param(error: RequestError) -> str:
    """The place of an error in a body of one item: `items[0].prompt[1]` is `prompt[1]`. Empty if it
    is the body as a whole."""
    return (error.param or "").removeprefix("items[0]").lstrip(".")
