"""How long answers took, seen from here.

Seconds per item are the wall time of scoring over the items scored, with `concurrency` requests in
flight: one over the throughput. A request carries up to 64 items and takes the seconds from its
sending to its whole reply: network, waiting for the device, the other requests in flight and the
client's retries included. A scorer's first item, asked alone before, is not timed. Times are kept
with the answers, so that a run that was resumed has those of all its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenreward.eval.answer import Answer


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall seconds per item; seconds of the request that an item travelled with (median and 95th
    percentile over items); how many items were timed; the concurrencies in use, more than one if a
    run was resumed with another."""

    per_item_s: float
    request_median_s: float
    request_p95_s: float
    num_items: int
    concurrencies: tuple[int, ...]


def latency_of(answers: Sequence[Answer]) -> Latency | None:
    """None if nothing was answered."""
    timings = [answer.timing for answer in answers if answer.timing is not None]
    if not timings:
        return None
    seconds = np.array([timing.seconds for timing in timings])
    median, p95 = np.percentile(seconds, [50, 95])
    return Latency(
        per_item_s=float(np.mean([timing.since_last_s / timing.num_items for timing in timings])),
        request_median_s=float(median),
        request_p95_s=float(p95),
        num_items=len(timings),
        concurrencies=tuple(sorted({timing.concurrency for timing in timings})),
    )
