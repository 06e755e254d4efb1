"""Scorer `constant`: the same number for every token.

It is for tests, for documentation, and for measuring the service without a model's pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals


class Scorer(contract.Scorer):
    """r_t = value. It reads no model."""

    class Options(contract.Options):
        value: float = Field(
            default=1.0, allow_inf_nan=False, description="The reward of every token."
        )

    task = None
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "value times the number of unmasked tokens"

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        return ()

    def needs(self, options: Options) -> Needs:
        return Needs()

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        values = np.full(len(sample.response_ids), options.value, dtype=np.float32)
        return Signals(score=float(options.value * sample.keep.sum()), values=values)
