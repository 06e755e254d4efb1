"""Scorer `endogenous`: the reward that a language model's own logits hold, without training.

Read as a soft Q-function, raw logits give the inverse soft Bellman reward (Li et al. 2025,
"Generalist Reward Models: Found Inside Large Language Models", 2506.23235):

    r_t = Q(s_t, a_t) - V(s_{t+1}),   V(s) = alpha * logsumexp(Q(s, .) / alpha)

so that sum_t r_t = alpha * log pi(response | prompt) + V(s_1) - V(s_{T+1}), with V = 0 past a
terminal token. V is a free potential: a single r_t can be compared with others of the same model
only. With `form: logprob` there is no V: r_t = log pi(a_t | s_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64
from pydantic import Field, model_validator

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals

_IDLE = {"soft_bellman": ("temperature",), "logprob": ("alpha", "terminal")}


class Scorer(contract.Scorer):
    """Per-token reward from a causal language model; values are increments."""

    class Options(contract.Options):
        form: Literal["soft_bellman", "logprob"] = Field(
            default="soft_bellman",
            description="`logprob` is log softmax(Q / temperature), without the V terms.",
        )
        alpha: float = Field(
            default=1.0, gt=0, allow_inf_nan=False, description="soft_bellman: entropy weight."
        )
        temperature: float = Field(
            default=1.0, gt=0, allow_inf_nan=False, description="logprob: divides the logits."
        )
        terminal: Literal["auto", "zero", "bootstrap"] = Field(
            default="auto",
            description=(
                "soft_bellman: V after the last token. `zero` is the paper's, `bootstrap` the "
                "model's own; `auto` is zero if the response ends with end-of-turn, else bootstrap."
            ),
        )
        aggregation: Literal["sum", "mean", "discounted_sum"] = Field(
            default="sum", description="How `score` is made of the unmasked tokens' rewards."
        )
        gamma: float = Field(
            default=1.0, ge=0, le=1, description="discounted_sum: weight gamma^t, t from 0."
        )
        clip_min: float = Field(
            default=0.0, ge=0, le=1, description="discounted_sum: weights are at least this."
        )

        @model_validator(mode="after")
        def _only_what_has_an_effect(self) -> Scorer.Options:
            for name in _IDLE[self.form]:
                if name in self.model_fields_set:
                    raise contract.without_effect(name, f"form `{self.form}`")
            for name in ("gamma", "clip_min"):
                if name in self.model_fields_set and self.aggregation != "discounted_sum":
                    raise contract.without_effect(name, f"aggregation `{self.aggregation}`")
            return self

        @property
        def softness(self) -> float:
            """What the logits are divided by before logsumexp."""
            if self.form == "soft_bellman":
                return self.alpha
            return self.temperature

    task = "causal_lm"
    log_probs_options: ClassVar[dict[str, Any] | None] = {"form": "logprob"}
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = (
        "sum of the unmasked tokens' rewards (`aggregation`: or their mean, or discounted sum)"
    )

    def needs(self, options: Options) -> Needs:
        return Needs(temperatures=frozenset({options.softness}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        if options.form == "logprob":
            exact = outputs[0].log_probs(options.temperature)
        else:
            exact = _soft_bellman(outputs[0], sample, options)
        values = exact.astype(np.float32)
        return Signals(score=_aggregate(sample.unmasked(values), options), values=values)


def _soft_bellman(
    outputs: Outputs, sample: Sample, options: Scorer.Options
) -> Float64[np.ndarray, " r"]:
    """Q of each response token less V of the state after it."""
    assert outputs.chosen is not None
    next_value = options.alpha * outputs.lse[options.alpha][1:].astype(np.float64)
    if options.terminal == "zero" or (options.terminal == "auto" and sample.terminal):
        next_value[-1] = 0.0
    return np.asarray(outputs.chosen.astype(np.float64) - next_value)


def _aggregate(unmasked: Float64[np.ndarray, " k"], options: Scorer.Options) -> float:
    """The score, from the unmasked tokens' rewards."""
    if options.aggregation == "sum":
        return float(unmasked.sum())
    if options.aggregation == "mean":
        return float(unmasked.mean())
    weights = np.maximum(options.gamma ** np.arange(len(unmasked)), options.clip_min)
    return float((unmasked * weights).sum())
