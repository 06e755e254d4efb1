"""Scorer `reward_model`: a trained scalar reward model, read at every token.

The score is the value head at the pooled token: the last one of the row, which is the last response
token unless the checkpoint has a suffix. The head at the response's own tokens are the per-token
values, as levels: each is the model's judgement of the prefix that ends there (Ouyang et al. 2022,
2203.02155, for the model; no paper trains the intermediate values, so `last` is the default
credit).

With `red` the values are increments (RED: Li et al. 2024, 2411.08302):

    r_t = RM(x, y_<=t) - RM(x, y_<t)

RM(x) is the head at the prompt's last token, RM(x, y_<=t) the head at token t, and the last token's
is the score itself, so that what a suffix adds is the last token's. They sum to the score less
RM(x), which the response cannot change. A masked token is read like any other, and its increment is
dropped: the sum is then short by that much. The score is the same with and without `red`; `credit:
{"name": "values"}` asks for the increments as rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals


class Scorer(contract.Scorer):
    """Scalar reward model; values are levels, or increments with `red`."""

    class Options(contract.Options):
        red: bool = Field(
            default=False,
            description="Values are RED's increments RM(prefix) - RM(prefix less its last token).",
        )

    task = "reward_model"
    gives = frozenset({"values", "score"})
    default_credit = "last"
    score_is = "value head at the pooled token (of two classes: logit[1] - logit[0])"

    def needs(self, options: Options) -> Needs:
        return Needs(values=True)

    def needs_without_values(self, options: Options) -> Needs:
        return Needs(pooled=True)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        values, pooled = outputs[0].values, outputs[0].pooled
        assert pooled is not None
        if values is None:
            return Signals(score=pooled)
        if options.red:
            return Signals(score=pooled, values=_increments(values, pooled), kind="increments")
        return Signals(score=pooled, values=values[1:], kind="levels")


def _increments(values: Float32[np.ndarray, " n"], pooled: float) -> Float32[np.ndarray, " n-1"]:
    """Differences of the prefixes' scores, the prompt's first; the last of them is the pooled
    one."""
    return np.diff(np.append(values[:-1].astype(np.float64), pooled)).astype(np.float32)
