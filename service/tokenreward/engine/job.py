"""A job: one item on its way through a replica.

    preprocess   makes it of an item: tokens, units, and the rows that the scorers want
    batching     keeps it in the queue until a batch takes it
    worker       has its rows read, and notes the outputs
    postprocess  makes the item's result of it

A job knows its own error and never fails its neighbours. This module
knows no model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64

from tokenreward.contract import Outputs, RowRequest, Sample
from tokenreward.engine.cost import extra_tokens
from tokenreward.entry import Entry
from tokenreward.errors import ItemError
from tokenreward.forward.packing import shared_key


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Entry):
    """One item on its way through a replica.

    Attributes:
        index: The item's place in the request.
        error: The error that stops all scorers on this item. With it, `sample`, `unit_of_token` and
            `scored` are not set, and there are no rows.
        sample: The item in the scorer's own tokens.
        unit_of_token: The unit [r] of each response token.
        scored: Which units [u] carry reward.
        requests: The rows to read, each distinct row once.
        num_skipped: For each of them, how many tokens were cut off its end, and how many of those
            have outputs (see `skipped`).
        rows_of: For each scorer, the indices of its rows in `requests`; or why it has none.
        num_numbers: How many numbers beside rewards its outputs and its result hold.
        outputs: The outputs of `requests`, or the error of their pass.
        version: Of the weights that compute the outputs; None if none do.
        batch_number: Which batch reads the rows, counted from 1; 0 if none does.
        launched_at: When that batch was launched, by time.monotonic.
        queue_s: Seconds in the queue.
        compute_s: Seconds that the batch took.
    """

    index: int
    error: ItemError | None = None
    sample: Sample = field(init=False)
    unit_of_token: Int64[np.ndarray, " r"] = field(init=False)
    scored: Bool[np.ndarray, " u"] = field(init=False)
    requests: list[RowRequest] = field(default_factory=list)
    num_skipped: dict[int, tuple[int, int]] = field(default_factory=dict)
    rows_of: dict[str, list[int] | ItemError] = field(default_factory=dict)
    num_numbers: int = 0
    outputs: list[Outputs] | ItemError = field(default_factory=list)
    version: int | None = None
    batch_number: int = 0
    launched_at: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0

    @property
    def param(self) -> str:
        """The item's path in the request."""
        return f"items[{self.index}]"

    def count_tokens(self) -> None:
        """Notes what the rows cost a batch: their tokens, and the prompts that a batch computes
        once for all jobs that read them; the numbers that come of them beside rewards; and what
        the item's scorers add."""
        self.num_tokens = sum(len(row.ids) for row, _ in self.requests)
        prompts = []
        for row, needs in self.requests:
            self.num_numbers += needs.num_of_tokens(row.stop - row.start)
            key = shared_key(row)
            if key is not None:
                # The queue compares keys under its lock: a digest is short, a prompt is not.
                digest = hashlib.blake2b(key, digest_size=16).digest()
                prompts.append(((row.model, digest), row.start))
        self.prompts = tuple(prompts)
        if self.rows_of:
            num_response = len(self.sample.response_ids)
            self.num_extra_tokens = extra_tokens(num_response, num_scorers=len(self.rows_of))
