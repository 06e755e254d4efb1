"""Scorer `attention_dense`: a reward model's score spread by its own attention.

ABC: Chan et al. 2024, "Dense Reward for Free in Reinforcement Learning from Human Feedback",
2402.00782.

w is the last layer's attention of the pooled token over the response, mean over heads, renormalised
over the unmasked response tokens. What the pooled token pays prompt and suffix is dropped, and the
weights sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals
from tokenreward.errors import ScorerFailed


class Scorer(contract.Scorer):
    """Score and weights; the credit `attention` spreads one by the other."""

    class Options(contract.Options):
        pass

    task = "reward_model"
    gives = frozenset({"score", "weights"})
    default_credit = "attention"
    score_is = "value head at the pooled token (of two classes: logit[1] - logit[0])"

    def needs(self, options: Options) -> Needs:
        return Needs(pooled=True, attention=frozenset({"last"}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        attention = outputs[0].attention["last"]
        start = len(sample.prompt_ids)
        paid = attention[start : start + len(sample.keep)].astype(np.float64)
        weights = np.where(sample.keep, paid, 0.0)
        total = weights.sum()
        if total == 0:
            raise ScorerFailed("the pooled token pays no attention to any unmasked response token")
        return Signals(
            score=outputs[0].pooled,
            weights=(weights / total).astype(np.float32),
            scores=outputs[0].scores or None,
        )
