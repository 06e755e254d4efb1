"""Scorer `entropy`: how undecided the language model was before each response token.

    H_t = - sum_a pi(a | s_t) log pi(a | s_t),   pi = softmax(Q / temperature), nats

By the chain rule the mean of sum_t H_t over responses drawn from pi is the entropy of pi's
responses. H_t says nothing of the token that was chosen: with `endogenous` of form `logprob`, which
does, and in the same pass, it is what a trainer computes with its reference model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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
        at = frozenset({options.temperature})
        return Needs(temperatures=at, entropies=at)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        values = outputs[0].entropy[options.temperature][:-1]
        kept = sample.unmasked(values)
        return Signals(
            score=float(kept.sum() if options.aggregation == "sum" else kept.mean()), values=values
        )
