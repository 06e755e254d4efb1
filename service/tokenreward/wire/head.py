"""The head of a request: which scorers it is for, with their options and credit.

The gateway sends most bodies on as they are, and needs no more of them than this. Reading a head
makes no objects of the items, which takes a fifth of the time that parsing the body takes. What the
items say is for whoever parses the body. This module needs msgspec.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenreward.wire.media import JSON, Media
from tokenreward.wire.request import RewardsRequest


class RequestHead(msgspec.Struct, frozen=True, kw_only=True):
    """A body without its items. `options` and `credit` are not checked."""

    scorer: str | None = None
    scorers: list[str] | None = None
    options: Any = None
    credit: Any = None

    @property
    def names(self) -> list[str]:
        """The scorers that the request is for."""
        return [self.scorer] if self.scorer is not None else list(self.scorers or ())


_JSON = msgspec.json.Decoder(RequestHead)
_MSGPACK = msgspec.msgpack.Decoder(RequestHead)


def read_head(body: bytes, media: Media) -> RequestHead:
    """The head of a body.

    Raises:
        RequestError: The body is no request, or does not say which scorers it is for. It is then
            refused as if it had been parsed.
    """
    media.refuse_large(body)
    try:
        head = (_JSON if media is JSON else _MSGPACK).decode(body)
    except (ValueError, RecursionError, TypeError):
        head = None
    if head is not None and (head.scorer is None) != (not head.scorers):
        return head
    # Parsing says what is wrong. If it finds nothing (it takes a NaN among the options, say), the
    # deployment judges.
    request = media.parse(RewardsRequest, body)
    return RequestHead(
        scorer=request.scorer,
        scorers=request.scorers,
        options=request.options,
        credit=request.credit,
    )
