"""What several protocols say of a reply and of an error.

It knows replies, and no program's bodies.
"""

from __future__ import annotations

import math
from typing import Any

from tokenreward.errors import InternalError, InvalidField, RequestError
from tokenreward.wire import ItemResult, Reply


def check_items(reply: Reply, field: str) -> list[ItemResult]:
    """The results of a reply in whose protocol no item can fail alone.

    Args:
        reply: The reply.
        field: What the protocol calls its items.

    Raises:
        InvalidField: An item is wrong.
        InternalError: An item failed, and may not fail again.
    """
    for item in reply.items:
        if item.error is not None:
            kind = InternalError if item.error.retryable else InvalidField
            message = f"{item.error.message} ({item.error.code})"
            raise kind(message, param=f"{field}[{item.index}]")
    return reply.items


def scores_of(reply: Reply, field: str) -> list[float]:
    """The score of each item. Arguments and errors as `check_items`; a score that is missing or not
    finite is an InternalError, and never a number."""
    scores = []
    for item in check_items(reply, field):
        if item.score is None or not math.isfinite(item.score):
            raise InternalError("the scorer gives no score", param=f"{field}[{item.index}]")
        scores.append(item.score)
    return scores


def detail_of(error: RequestError, field: str) -> dict[str, Any]:
    """An error in a few words of JSON, whose place is in the protocol's own body."""
    return {"code": error.code, "message": error.message, "param": param_of(error, field)}


def param_of(error: RequestError, field: str) -> str | None:
    """The place of an error in a protocol's own body, where `items` are called `field`."""
    return (error.param or "").replace("items[", f"{field}[", 1) or None
