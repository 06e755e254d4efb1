"""How much a replica has to do, and how much of it a second: the figures that autoscaling reads.

It is fed by the worker and by the engine. It knows no Ray, and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenreward.entry import Entry

_MEMORY = 0.95  # the share of the earlier batches in each sum
_MAX_REACH = 4.0  # how many times larger than the batches measured is the largest that is estimated


class Load:
    """Counts what arrives and measures how fast full batches are computed.

    The rate is that of a full batch, also while batches are small. A replica that is not busy takes
    each item as it comes, and a batch of one item may reach a tenth of the tokens a second that a
    full one does. By the rate of its small batches such a replica would always seem to be busy,
    more replicas would make the batches smaller still, and the number would grow without end. So
    the seconds of a batch are taken to be a straight line of its tokens, fitted by least squares to
    the latest batches, and the rate is read off where the batch is full.

    Args:
        max_batch_tokens: The most tokens in a batch.
        max_batch_requests: The most entries in a batch.

    Attributes:
        arrived_tokens: Tokens of all entries that callers queued here, since the replica started.
    """

    def __init__(self, *, max_batch_tokens: int, max_batch_requests: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_requests = max_batch_requests
        self.arrived_tokens = 0
        # Sums over the batches, the latest weighted most: of their number, entries, tokens and
        # seconds, of squared tokens, and of tokens times seconds.
        self._sums: tuple[float, ...] = (0.0,) * 6

    def note_arrival(self, entries: Sequence[Entry]) -> None:
        """Counts entries that a caller queued."""
        self.arrived_tokens += sum(entry.queued_tokens for entry in entries)

    def note_batch(self, entries: Sequence[Entry], seconds: float) -> None:
        """Notes a batch that was computed."""
        num_tokens = sum(entry.queued_tokens for entry in entries)
        if num_tokens == 0 or seconds <= 0:
            return
        terms = (
            1.0,
            len(entries),
            num_tokens,
            seconds,
            num_tokens * num_tokens,
            num_tokens * seconds,
        )
        self._sums = tuple(
            _MEMORY * total + term for total, term in zip(self._sums, terms, strict=True)
        )

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second of a full batch; None until a batch was computed."""
        weight = self._sums[0]
        if not weight:
            return None
        entries, tokens, seconds, squares, products = (each / weight for each in self._sums[1:])
        variance = squares - tokens * tokens
        slope = seconds / tokens
        if variance > 1e-6 * tokens * tokens:  # else the batches tell no line
            # No batch costs less than nothing, however noisy the times are.
            slope = min(max(0.0, (products - tokens * seconds) / variance), slope)
        full = min(self._max_batch_tokens, self._max_batch_requests * tokens / entries)
        full = max(tokens, min(full, _MAX_REACH * tokens))
        return full / (seconds + slope * (full - tokens))

    def figures(self, pending_tokens: int) -> dict[str, float]:
        """The figures of a replica, as `deployment/autoscaling.py` reads them.

        Args:
            pending_tokens: Tokens that are tokenised, wait or are computed now.

        Returns:
            `pending_tokens`, as one sum: Ray takes the largest of each figure over 2 s, so that
            tokens which moved on meanwhile would count twice. `arrived_tokens`.
            `tokens_per_second`: the rate of a full batch; absent until a batch was computed.
        """
        figures: dict[str, float] = {
            "pending_tokens": pending_tokens,
            "arrived_tokens": self.arrived_tokens,
        }
        rate = self.tokens_per_s
        return figures if rate is None else {**figures, "tokens_per_second": rate}
