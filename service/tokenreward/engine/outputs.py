"""How many numbers beside rewards a replica holds at a time, for all requests together.

Log-probs of other tokens (`top_k`, `candidates`) can be hundreds for each token that was read, from
the pass until the reply is made. A budget of queued tokens does not see them. This module knows
numbers, and not what they are of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tokenreward.errors import Overloaded

MAX_NUMBERS = 2**25  # 128 MiB of float32, twice where a result is made of them
_RETRY_AFTER_S = 1.0


class OutputBudget:
    """What the requests of a replica share.

    Args:
        max_numbers: The most numbers at a time. It is more than one request may have.

    Attributes:
        num_held: The numbers that are held now.
    """

    def __init__(self, max_numbers: int = MAX_NUMBERS) -> None:
        self._max_numbers = max_numbers
        self.num_held = 0

    @contextlib.contextmanager
    def hold(self, num_numbers: int) -> Iterator[None]:
        """Holds numbers until the block ends. Raises Overloaded if there is no room for them now.

        A request that wants none is never refused.
        """
        if num_numbers and self.num_held + num_numbers > self._max_numbers:
            raise Overloaded(
                f"{self.num_held} log-probs of other tokens are held and {num_numbers} more would "
                f"pass {self._max_numbers}",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.num_held += num_numbers
        try:
            yield
        finally:
            self.num_held -= num_numbers
