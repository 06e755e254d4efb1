"""Scorer `endogenous`: the reward that a language model's own logits hold, without training.

Read as a soft Q-function, raw logits give the inverse soft Bellman reward (Li et al. 2025, "Generalist Reward Models:
Found Inside Large Language Models", 2506.23235):

    r_t = Q(s_t, a_t) - V(s_{t+1}),   V(s) = alpha * logsumexp(Q(s, .) / alpha)

so that sum_t r_t = alpha * log pi(response | prompt) + V(s_1) - V(s_{T+1}), with V = 0 past a terminal token. V is a
free potential: a single r_t is comparable within one model only. `form: logprob` drops it: r_t = log pi(a_t | s_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field, model_validator

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Sample, Signals

_FOREIGN = {"soft_bellman": ("temperature",), "logprob": ("alpha", "terminal")}


class Scorer(contract.Scorer):
    """Per-token reward from a causal language model; values are increments."""

    class Options(contract.Options):
        form: Literal["soft_bellman", "logprob"] = Field(
            default="soft_bellman", description="`logprob` is log softmax(Q / temperature), without the V terms."
        )
        alpha: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="soft_bellman: entropy weight.")
        temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="logprob: divides the logits.")
        terminal: Literal["auto", "zero", "bootstrap"] = Field(
            default="auto",
            description="soft_bellman: V after the last token. `zero` is the paper's, `bootstrap` the model's own; "
            "`auto` is zero if the response ends with end-of-turn, else bootstrap.",
        )
        aggregation: Literal["sum", "mean", "discounted_sum"] = Field(
            default="sum", description="How `score` is made of the unmasked tokens' rewards."
        )
        gamma: float = Field(default=1.0, ge=0, le=1, description="discounted_sum: weight gamma^t, t from 0.")
        clip_min: float = Field(default=0.0, ge=0, le=1, description="discounted_sum: weights are at least this.")

        @model_validator(mode="after")
        def _only_what_has_an_effect(self) -> Scorer.Options:
            for name in _FOREIGN[self.form]:
                if name in self.model_fields_set:
                    raise contract.without_effect(name, f"form `{self.form}`")
            for name in ("gamma", "clip_min"):
                if name in self.model_fields_set and self.aggregation != "discounted_sum":
                    raise contract.without_effect(name, f"aggregation `{self.aggregation}`")
            return self

        @property
        def softness(self) -> float:
            """What the logits are divided by before logsumexp."""
            return self.alpha if self.form == "soft_bellman" else self.temperature

    task = "causal_lm"
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "sum of the unmasked tokens' rewards (`aggregation`: or their mean, or discounted sum)"

    def needs(self, options: Options) -> Needs:
        return Needs(temperatures=frozenset({options.softness}))

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        chosen, lse = outputs[0].chosen, outputs[0].lse[options.softness]
        assert chosen is not None
        values = (_soft_bellman if options.form == "soft_bellman" else _logprob)(chosen, lse, sample, options)
        return Signals(score=_aggregate(values[sample.keep], options), values=values)


def _soft_bellman(
    chosen: Float32[np.ndarray, " r"], lse: Float32[np.ndarray, " r+1"], sample: Sample, options: Scorer.Options
) -> Float32[np.ndarray, " r"]:
    next_value = options.alpha * lse[1:].astype(np.float64)
    if options.terminal == "zero" or (options.terminal == "auto" and sample.terminal):
        next_value[-1] = 0.0
    return np.asarray(chosen.astype(np.float64) - next_value, dtype=np.float32)


def _logprob(
    chosen: Float32[np.ndarray, " r"], lse: Float32[np.ndarray, " r+1"], _sample: Sample, options: Scorer.Options
) -> Float32[np.ndarray, " r"]:
    log_probs = chosen.astype(np.float64) / options.temperature - lse[:-1].astype(np.float64)
    return np.asarray(log_probs, dtype=np.float32)


def _aggregate(kept: Float32[np.ndarray, " k"], options: Scorer.Options) -> float:
    exact = kept.astype(np.float64)
    if options.aggregation == "sum":
        return float(exact.sum())
    if options.aggregation == "mean":
        return float(exact.mean())
    return float((exact * np.maximum(options.gamma ** np.arange(len(exact)), options.clip_min)).sum())
