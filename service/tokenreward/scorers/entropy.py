"""Scorer `entropy`: how undecided the language model was before each response token.

    H_t = - sum_a pi(a | s_t) log pi(a | s_t),   pi = softmax(Q / temperature), nats

By the chain rule, the mean of sum_t H_t over responses drawn from pi is the entropy of pi's
responses. H_t says nothing of the token that was chosen; the scorer `endogenous` of form `logprob`
does. Together, in one pass, they are what a trainer computes with its reference model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals


class Scorer(contract.Scorer):
    """Per-token entropy of a causal language model, in nats; values are increments."""

    class Options(contract.Options):
        temperature: float = Field(
            default=1.0, gt=0, allow_inf_nan=False, description="Divides the logits."
        )
        aggregation: Literal["sum", "mean"] = Field(
            default="sum", description="How `score` is made of the unmasked tokens' entropies."
        )

    task = "causal_lm"
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "sum of the entropies at the unmasked tokens, nats (`aggregation`: or their mean)"

    def needs(self, options: Options) -> Needs:
        temperatures = frozenset({options.temperature})
        return Needs(temperatures=temperatures, entropies=temperatures)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        values = outputs[0].entropy[options.temperature][:-1]
        aggregate = np.sum if options.aggregation == "sum" else np.mean
        return Signals(score=float(aggregate(sample.unmasked(values))), values=values)
