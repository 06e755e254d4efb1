"""Scorer `reward_model`: a trained scalar reward model, read at every token.

The score is the value head at the pooled token: the last one of the row, which is the last response token unless the
checkpoint has a suffix. The head at the response's own tokens are the per-token values, as levels: each is the
model's judgement of the prefix that ends there (Ouyang et al. 2022, 2203.02155, for the model; no paper trains the
intermediate values, so `last` is the default credit).
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals


class Scorer(contract.Scorer):
    """Scalar reward model; values are levels."""

    class Options(contract.Options):
        pass

    task = "reward_model"
    gives = frozenset({"values", "score"})
    default_credit = "last"
    score_is = "value head at the pooled token (of two classes: logit[1] - logit[0])"

    def needs(self, options: Options) -> Needs:
        return Needs(values=True)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        values = outputs[0].values
        assert values is not None
        return Signals(score=outputs[0].pooled, values=values[1:], kind="levels")
