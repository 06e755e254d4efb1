"""Scorer `implicit`: the reward that a fine-tuned language model holds against the model it was
tuned from.

    r_t = beta * (log pi(a_t | s_t) - log pi_ref(a_t | s_t)),   pi = softmax(Q / temperature)

With a DPO model and its reference this is the DPO-implicit reward per token: the optimal advantage,
whose sum is the response's reward up to a constant of its prompt (Rafailov et al. 2024, "From r to
Q*", 2404.12358, eq. 10 and 11). With a model trained on outcomes it is the implicit process reward
(Yuan et al. 2024, "Free Process Rewards without Process Labels", 2412.01981; PRIME: Cui et al.
2025, 2502.01456). Sums compare within one prompt only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, FiniteFloat, model_validator

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals


class Scorer(contract.Scorer):
    """Log-ratio of policy and reference at every token; values are increments."""

    class Options(contract.Options):
        beta: float = Field(
            default=0.1,
            gt=0,
            allow_inf_nan=False,
            description=(
                "Factor of the log-ratio, best the one that the model was trained with: DPO's "
                "usual one is 0.1, PRIME's 0.05."
            ),
        )
        temperature: float = Field(
            default=1.0, gt=0, allow_inf_nan=False, description="Divides the logits of both models."
        )
        token_clip: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)] | None = Field(
            default=None,
            description=(
                "[low, high]: each token's value is clamped to it, before units and `score` add "
                "up. RTO has beta 0.05 and [-0.05, 0.05]."
            ),
        )
        last_token: Literal["keep", "zero"] = Field(
            default="keep",
            description=(
                "`zero` gives the response's last token 0, as PRIME does; DPO and RTO keep it."
            ),
        )

        @model_validator(mode="after")
        def _the_clip_is_a_range(self) -> Scorer.Options:
            if self.token_clip is not None and self.token_clip[0] > self.token_clip[1]:
                raise ValueError(
                    f"`token_clip` must be [low, high] with low <= high, got {self.token_clip}"
                )
            return self

    task = "causal_lm"
    models = frozenset({"policy", "reference"})
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "sum of the unmasked tokens' values, as `token_clip` and `last_token` leave them"

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """The same tokens for both models, the policy's row first."""
        (row,) = super().rows(sample, options)
        return row, replace(row, model="reference")

    def needs(self, options: Options) -> Needs:
        return Needs(temperatures=frozenset({options.temperature}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        policy, reference = (each.log_probs(options.temperature) for each in outputs)
        exact = options.beta * (policy - reference)
        if options.token_clip is not None:
            exact = exact.clip(*options.token_clip)
        if options.last_token == "zero":  # noqa: S105 - a token of text
            exact[-1] = 0.0
        values = exact.astype(np.float32)
        return Signals(score=float(sample.unmasked(values).sum()), values=values)
