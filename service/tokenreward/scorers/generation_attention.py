"""Scorer `generation_attention`: the item's own score, spread by the attention of the language
model that wrote the response.

ABC-D and ABC-D2: Chan et al. 2024, "Dense Reward for Free in Reinforcement Learning from Human
Feedback", 2402.00782.

a[i, j] is the attention that the last layer, mean over heads, pays token j while it generates token
i. The weights are

    abc_d    w_{j+1} = mean of a[i, j] over the steps i that see token j
    abc_d2   w_{j+1} = a[last, j]

with w_0 = 0, renormalised to sum to 1 over the unmasked response tokens. A single unmasked token
has weight 1. Masked tokens are steps like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Reading, Row, Sample, Signals
from tokenreward.errors import ScorerFailed

_READS: dict[str, Reading] = {"abc_d": "mean_step", "abc_d2": "last_step"}


class Scorer(contract.Scorer):
    """Score and weights; the credit `attention` spreads one by the other.

    The score is the item's own and comes from outside the model.
    """

    class Options(contract.Options):
        variant: Literal["abc_d", "abc_d2"] = Field(
            default="abc_d",
            description=(
                "Attention of all generation steps, averaged, or (`abc_d2`) of the last one."
            ),
        )
        score_from: str | None = Field(
            default=None,
            description=(
                "The scorer that the gateway (`/v1/rewards`) asks for the `score` of items that "
                "have none."
            ),
        )

    task = "causal_lm"
    takes = frozenset({"score"})
    gives = frozenset({"score", "weights"})
    default_credit = "attention"
    score_is = "the item's own `score`, or what the scorer that `score_from` names says of it"

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """One, if there is a score to spread. Raises ScorerFailed, before the model reads it."""
        _score_of(sample, options)
        return super().rows(sample, options)

    def needs(self, options: Options) -> Needs:
        return Needs(attention=frozenset({_READS[options.variant]}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        paid = outputs[0].attention[_READS[options.variant]]
        if options.variant == "abc_d2":
            start = len(sample.prompt_ids)
            paid = paid[start : start + len(sample.response_ids)]
        # What token j is paid is the weight of the token after it. No step is left to pay the last
        # token.
        weights = np.concatenate([[0.0], paid[:-1].astype(np.float64)])
        return Signals(
            score=_score_of(sample, options),
            weights=_normalised(weights, sample).astype(np.float32),
        )


def _score_of(sample: Sample, options: Scorer.Options) -> float:
    """The item's score. Raises ScorerFailed if it has none, with what to do about it."""
    if sample.item.score is not None:
        return sample.item.score
    if options.score_from is None:
        remedy = (
            "send it, or name a scorer in the option `score_from` and ask the gateway (/v1/rewards)"
        )
    else:
        remedy = (
            f"send the item to the gateway (/v1/rewards), which asks `{options.score_from[:64]}`, "
            "or send a score with it"
        )
    raise ScorerFailed(f"the item has no score to spread: {remedy}", param="score")


def _normalised(weights: Float64[np.ndarray, " r"], sample: Sample) -> Float64[np.ndarray, " r"]:
    """Weights that sum to 1 over the unmasked tokens.

    Raises:
        ScorerFailed: There are several unmasked tokens, and none has a weight.
    """
    if sample.keep.sum() == 1:
        return sample.keep.astype(np.float64)
    weights = np.where(sample.keep, weights, 0.0)
    total = weights.sum()
    if total == 0:
        raise ScorerFailed(
            "no generation step pays attention to a token before an unmasked response token"
        )
    return np.asarray(weights / total)
