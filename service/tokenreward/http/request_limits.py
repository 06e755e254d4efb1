"""What holds for every request: how large it may be, how long it may take, and which keys open the
routes.

It knows headers and numbers, and no routes and no scorers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from tokenreward.errors import InvalidField, TooManyItems, quotable
from tokenreward.wire.paths import TIMEOUT_HEADER

_ANSWERING_S = 0.03  # between two Ray processes and the caller; measured at 10 to 15 ms
_MAX_MARGIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for every request.

    Attributes:
        max_body_bytes: The largest body.
        max_request_items: The most items in one request.
        request_timeout_s: The deadline of a request that names none.
        max_timeout_s: The latest deadline that a request may name.
        max_body_memory_bytes: Bytes of bodies that the process holds at a time.
        api_keys: The keys that open the routes; none, and everybody may enter.
        admin_keys: The keys that open the routes which change weights, and nothing else; none, and
            there are no such routes.
        echo_request_id: Whether replies carry the request's id. Ray's proxy adds it by itself.
    """

    max_body_bytes: int
    max_request_items: int
    request_timeout_s: float
    max_timeout_s: float = 3600.0
    max_body_memory_bytes: int = 256 * 2**20
    api_keys: tuple[SecretStr, ...] = ()
    admin_keys: tuple[SecretStr, ...] = ()
    echo_request_id: bool = True

    def time_limit_s(self, headers: Mapping[str, str]) -> float:
        """Seconds that the work may take: the caller's deadline, or ours, less a margin.

        Ray's proxy reads the same header and would answer 408 at that very moment. The margin lets
        our own answer win.

        Raises:
            InvalidField: The caller's deadline is no number, not positive, or past
                `max_timeout_s`.
        """
        header = headers.get(TIMEOUT_HEADER)
        seconds = self.request_timeout_s
        if header is not None:
            seconds = _positive(header)
            if seconds > self.max_timeout_s:
                raise InvalidField(
                    f"must be at most {self.max_timeout_s:g} seconds (`max_timeout_s`), got "
                    f"`{quotable(header)}`",
                    param=TIMEOUT_HEADER,
                )
        return seconds - min(_MAX_MARGIN_S, max(seconds / 10, min(seconds / 2, _ANSWERING_S)))

    def refuse_many_items(self, num_items: int) -> None:
        """Raises TooManyItems."""
        limit = self.max_request_items
        if num_items > limit:
            raise TooManyItems(
                f"the request has {num_items} items, the limit is {limit} (`max_request_items`)",
                param="items",
            )


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise InvalidField(
            f"the header must be a positive number of seconds, got `{quotable(text)}`",
            param=TIMEOUT_HEADER,
        )
    return seconds
