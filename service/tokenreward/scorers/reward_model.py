"""Scorer `reward_model`: a trained scalar reward model, read at every token.

The score is the value head at the pooled token. That is the last token of the row: the last
response token, unless the checkpoint has a suffix. The per-token values are the head at the
response's own tokens, as levels: each is the model's judgement of the prefix that ends there. The
model is that of Ouyang et al. 2022, 2203.02155. No paper trains the intermediate values, so `last`
is the default credit.

Of a head with several labels, the value is the one that the deployment's `head` names, or their
weighted sum; all of them at the pooled token are `scores`.

With `red` the values are increments (RED: Li et al. 2024, 2411.08302):

    r_t = RM(x, y_<=t) - RM(x, y_<t)

RM(x) is the head at the prompt's last token and RM(x, y_<=t) the head at token t. For the last
token it is the score itself, so what a suffix adds goes to the last token. The increments sum to
the score less RM(x), which the response cannot change. A masked token is read like any other and
its increment is dropped, which the sum then lacks. The score is the same with and without `red`;
`credit: {"name": "values"}` makes the increments rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals
from tokenreward.errors import EmptyPrompt


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
        scores = outputs[0].scores or None
        if values is None:
            return Signals(score=pooled, scores=scores)
        num_tokens = len(sample.response_ids)
        if options.red:
            if len(values) == num_tokens:
                raise EmptyPrompt("without a prompt, the first token has no increment (`red`)")
            increments = _increments(values, pooled)
            return Signals(score=pooled, values=increments, kind="increments", scores=scores)
        return Signals(score=pooled, values=values[-num_tokens:], kind="levels", scores=scores)


def _increments(values: Float32[np.ndarray, " n"], pooled: float) -> Float32[np.ndarray, " n-1"]:
    """Differences of the prefixes' scores: the first prefix is the prompt, the last is the whole
    row, whose score is the pooled one."""
    prefixes = np.append(values[:-1].astype(np.float64), pooled)
    return np.diff(prefixes).astype(np.float32)
