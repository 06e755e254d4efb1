"""Scorer `process`: a process reward model's score of each reasoning step of a response.

The response is cut into steps, laid out as the checkpoint's own format has it
(`models/step_layouts` says how), and each step's probability read at the tag behind it:
sigmoid(value) of a reward model, or a language model's softmax over two answer tokens. With s_i =
p_i, or 2 p_i - 1 for `scale: signed`, step i earns s_i, or in min-form credit assignment (PURE:
Cheng et al. 2025, 2504.15275)

    softmax(-s / temperature)_i s_i

on the last of its unmasked tokens, or evenly on all of them: rewards add up to what the steps earn.
Masked tokens are read; a step that has no other is shown, but counts in no reward, no softmax and
no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, model_validator

from tokenreward import contract
from tokenreward.contract import (
    Needs,
    Outputs,
    Row,
    Sample,
    Signals,
    Steps,
    Task,
    TokenizerView,
)
from tokenreward.errors import UnsupportedText
from tokenreward.scorers._prompts.steps import LayoutName, StepLayout, StepRow, step_row, tag_of

_SEPARATORS: dict[LayoutName, str] = {"qwen": "\n\n", "math_shepherd": "\n", "skywork": "\n"}
_TAGS: dict[LayoutName, str] = {"qwen": "<extra_0>", "math_shepherd": " ки", "skywork": "\n"}
_ONLY_WITH = {
    "system": ("layout", "qwen"),
    "good_token": ("layout", "math_shepherd"),
    "bad_token": ("layout", "math_shepherd"),
    "temperature": ("form", "softmin"),
}
_REDUCTIONS: dict[str, Callable[[Float64[np.ndarray, " c"]], np.float64]] = {
    "min": np.min,
    "mean": np.mean,
    "product": np.prod,
    "last": lambda scores: scores[-1],
}


class Scorer(contract.Scorer):
    """Step scores, and values that add up to what the steps earn."""

    class Options(contract.Options):
        layout: LayoutName = Field(
            default="qwen", description="The format that the checkpoint was trained on."
        )
        separator: str | None = Field(
            default=None,
            min_length=1,
            description="Ends a step. Default: a blank line for qwen, a line break else.",
        )
        step_tag: str | None = Field(
            default=None,
            min_length=1,
            description="Read behind each step. Default: `<extra_0>`, ` ки`, a line break.",
        )
        system: str | None = Field(
            default="Please reason step by step, and put your final answer within \\boxed{}.",
            description=(
                "qwen: goes in front of messages that have no system message; null: none does."
            ),
        )
        good_token: str = Field(
            default="+", description="math_shepherd: the token that calls a step right."
        )
        bad_token: str = Field(
            default="-", description="math_shepherd: the token that calls it wrong."
        )
        scale: Literal["probability", "signed"] = Field(
            default="probability", description="A step's score is its probability p, or 2p - 1."
        )
        reduction: Literal["min", "mean", "product", "last"] = Field(
            default="min", description="How `score` is made of the step scores."
        )
        form: Literal["plain", "softmin"] = Field(
            default="plain", description="A step earns its score s, or softmax(-s / temperature) s."
        )
        temperature: float = Field(
            default=0.1,
            gt=0,
            allow_inf_nan=False,
            description="softmin: the lower, the more the worst step counts.",
        )
        placement: Literal["last_token", "spread"] = Field(
            default="last_token",
            description="What a step earns: on its last unmasked token, or evenly on all of them.",
        )

        @model_validator(mode="after")
        def _only_what_has_an_effect(self) -> Scorer.Options:
            for name, (owner, wanted) in _ONLY_WITH.items():
                if name in self.model_fields_set and getattr(self, owner) != wanted:
                    raise contract.without_effect(name, f"{owner} `{getattr(self, owner)}`")
            if self.reduction == "product" and self.scale == "signed":
                raise ValueError(
                    "`reduction` `product` multiplies probabilities, and `scale` is `signed`"
                )
            return self

    task = None
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = (
        "the smallest step score (`reduction`: or their mean, product or last), of steps with "
        "unmasked tokens"
    )

    def task_for(self, options: Options) -> Task | None:
        return "causal_lm" if _reads_labels(options) else "reward_model"

    def check(self, options: Options, tokenizer: TokenizerView) -> None:
        tag_of(_layout(options), tokenizer)
        self.labels(options, tokenizer)

    def labels(self, options: Options, tokenizer: TokenizerView) -> frozenset[int]:
        return frozenset(_labels(options, tokenizer)) if _reads_labels(options) else frozenset()

    def needs(self, options: Options) -> Needs:
        return Needs(values=not _reads_labels(options))

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """One, up to the last tag; its entries begin behind the first. Raises EmptyResponse,
        UnsupportedText."""
        steps = _read(sample, options)
        return (Row(steps.ids, start=int(steps.tags[0]) + 1, stop=len(steps.ids)),)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        read = _read(sample, options)
        margins = _margins(sample, outputs[0], options)[read.tags - read.tags[0]]
        scores = (
            np.tanh(margins / 2)
            if options.scale == "signed"
            else np.exp(-np.logaddexp(0.0, -margins))
        )
        counts = np.bincount(read.step_of, weights=sample.keep) > 0
        earned = _earned(scores, counts, options)
        place = _spread if options.placement == "spread" else _on_last_token
        return Signals(
            score=float(_REDUCTIONS[options.reduction](scores[counts])),
            values=place(earned, read.step_of, sample.keep).astype(np.float32),
            steps=Steps(
                scores.astype(np.float32),
                last=np.flatnonzero(np.diff(read.step_of, append=len(scores))),
            ),
        )


def _read(sample: Sample, options: Scorer.Options) -> StepRow:
    return step_row(sample, _layout(options))


def _layout(options: Scorer.Options) -> StepLayout:
    separator, tag = (
        options.separator or _SEPARATORS[options.layout],
        options.step_tag or _TAGS[options.layout],
    )
    return StepLayout(options.layout, separator, tag, options.system)


def _reads_labels(options: Scorer.Options) -> bool:
    return options.layout == "math_shepherd"


def _labels(options: Scorer.Options, tokenizer: TokenizerView) -> tuple[int, int]:
    """The good token and the bad one. Raises UnsupportedText: no such token, or twice the same."""
    tokens = []
    for name in ("good_token", "bad_token"):
        token = tokenizer.single(getattr(options, name))
        if token is None:
            raise UnsupportedText(f"the option `{name}` is not one token of this tokenizer")
        tokens.append(token)
    if tokens[0] == tokens[1]:
        raise UnsupportedText("the options `good_token` and `bad_token` are the same token")
    return tokens[0], tokens[1]


def _margins(
    sample: Sample, outputs: Outputs, options: Scorer.Options
) -> Float64[np.ndarray, " e"]:
    """log p / (1 - p) from the first tag on."""
    if _reads_labels(options):
        good, bad = (
            outputs.logits[label].astype(np.float64) for label in _labels(options, sample.tokenizer)
        )
        return np.asarray(good - bad)
    assert outputs.values is not None
    return outputs.values.astype(np.float64)


def _earned(
    scores: Float64[np.ndarray, " k"], counts: Bool[np.ndarray, " k"], options: Scorer.Options
) -> Float64[np.ndarray, " k"]:
    """0 for a step that does not count."""
    if options.form == "plain":
        return np.where(counts, scores, 0.0)
    exponents = np.where(counts, -scores / options.temperature, -np.inf)
    weights = np.exp(exponents - exponents.max())
    return np.asarray(weights / weights.sum() * scores)


def _on_last_token(
    earned: Float64[np.ndarray, " k"],
    step_of: Int64[np.ndarray, " r"],
    keep: Bool[np.ndarray, " r"],
) -> Float64[np.ndarray, " r"]:
    values = np.zeros(len(keep))
    kept = np.flatnonzero(keep)
    last = kept[np.diff(step_of[kept], append=len(earned)) > 0]
    values[last] = earned[step_of[last]]
    return values


def _spread(
    earned: Float64[np.ndarray, " k"],
    step_of: Int64[np.ndarray, " r"],
    keep: Bool[np.ndarray, " r"],
) -> Float64[np.ndarray, " r"]:
    num_kept = np.bincount(step_of, weights=keep)
    return np.where(keep, (earned / np.maximum(num_kept, 1.0))[step_of], 0.0)
