"""Flows: generators that say what to do next and do no I/O themselves.

A flow yields its next step, and is sent what came of it:

    a Send              -> the `httpx.Response`, or the `httpx.RequestError` that came in its place
    a number            -> nothing, after a pause of so many seconds
    (ticket, seconds)   -> whether the ticket was done within so many seconds
    a list of flows     -> the list of what they returned, in the same order; they run side by side

`Client` and `AsyncClient` drive the same flows, one with threads and one with tasks, so that no
rule is written twice. This module knows the steps, and no rule.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

from tokenreward.wire import JSON_TYPE
from tokenreward.wire.paths import HOLD_HEADER, REQUEST_ID_HEADER, TIMEOUT_HEADER
from tokenreward_client.response import OUR_ID
from tokenreward_client.window import Ticket

# A service refuses a request that names a later deadline (its setting `max_timeout_s`, by default).
# A call may last longer: it makes more than one request.
LATEST_DEADLINE_S = 3600.0
# The deadline travels in whole milliseconds, and the server refuses 0.000.
LEAST_LEFT_S = 0.001

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send one request: a POST if there is a body, else a GET.

    Attributes:
        path: Below the client's base URL.
        body: The bytes of the body.
        timeout_s: Seconds after which a reply is worth nothing.
        content_type: The media type of the body.
        request_id: A new id for every try, by which the reply is known to be its own.
        authorization: The header of that name, in place of the client's.
    """

    path: str
    body: bytes | None
    timeout_s: float
    content_type: str = JSON_TYPE
    request_id: str = field(default_factory=lambda: OUR_ID + uuid.uuid4().hex)
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of this request alone.

        The caller's deadline travels along, so that the server starts no work past it.
        """
        headers = {
            TIMEOUT_HEADER: deadline_text(self.timeout_s),
            REQUEST_ID_HEADER: self.request_id,
            # A refusal is what the window goes by. A request that is held says nothing.
            HOLD_HEADER: "0",
        }
        if self.body is not None:
            headers["content-type"] = self.content_type
        if self.authorization is not None:
            headers["authorization"] = self.authorization
        return headers


def deadline_text(left_s: float) -> str:
    """The value of TIMEOUT_HEADER for a request whose reply is worth nothing after so long."""
    return f"{min(left_s, LATEST_DEADLINE_S):.3f}"


Step = Union[Send, float, tuple[Ticket, float], "list[Flow[Any]]"]
Flow = Generator[Step, Any, T]
