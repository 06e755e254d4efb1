"""Scorer `process`: a process reward model's score of each reasoning step of a response.

The response is cut into steps, which are laid out in the checkpoint's own format
(`_prompts/steps.py` says how). The probability p_i of step i is read at the tag behind it:
sigmoid(value) of a reward model, or a language model's softmax over two answer tokens. The step's
score s_i is p_i, or 2 p_i - 1 for `scale: signed`. The step earns s_i, or in min-form credit
assignment (`form: softmin`; PURE: Cheng et al. 2025, 2504.15275)

    softmax(-s / temperature)_i s_i

Its last unmasked token gets what it earns, or all its unmasked tokens get even shares: the rewards
add up to what the steps earn. Masked tokens are read. A step of masked tokens alone is shown in the
reply, but counts in no reward, no softmax and no score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, model_validator

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals, Task, TokenizerView
from tokenreward.errors import UnsupportedText
from tokenreward.scorers._prompts.spellings import Spelling
from tokenreward.scorers._prompts.steps import LayoutName, StepLayout, check_layout, step_row

# Of each layout: the separator, the tag, the joiner and the opening.
_DEFAULTS: dict[LayoutName, tuple[str, str, str, str]] = {
    "qwen": ("\n\n", "<extra_0>", "", ""),
    "math_shepherd": ("\n", " ки", "\n", " "),
    "skywork": ("\n", "\n", "", "\n"),
    "turns": ("\n\n", "", "", " "),
}
_ONLY_WITH = {
    "step_tag": ("layout", ("qwen", "math_shepherd", "skywork")),
    "joiner": ("layout", ("qwen", "math_shepherd", "skywork")),
    "opening": ("layout", ("math_shepherd", "skywork", "turns")),
    "system": ("layout", ("qwen",)),
    "good_token": ("layout", ("math_shepherd", "turns")),
    "bad_token": ("layout", ("math_shepherd", "turns")),
    "temperature": ("form", ("softmin",)),
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
            description=(
                "Ends a step, where neither the item's `steps` nor tags in the response say it. "
                "Default: a blank line for qwen and turns, a line break else."
            ),
        )
        step_tag: str | None = Field(
            default=None,
            min_length=1,
            description=(
                "Read behind each step. Default: `<extra_0>`, ` ки`, a line break; turns: none."
            ),
        )
        joiner: str | None = Field(
            default=None,
            description=(
                "Between a tag and the next step. Default: nothing; math_shepherd: a line break, "
                "unless the tag ends in one."
            ),
        )
        opening: str | None = Field(
            default=None,
            description=(
                "Between the problem and the first step. Default: a space; skywork: a line break."
            ),
        )
        system: str | None = Field(
            default="Please reason step by step, and put your final answer within \\boxed{}.",
            description=(
                "qwen: goes in front of messages that have no system message; null: none does."
            ),
        )
        good_token: Spelling = Field(
            default="+", description="math_shepherd, turns: the token that calls a step right."
        )
        bad_token: Spelling = Field(
            default="-", description="math_shepherd, turns: the token that calls it wrong."
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
            for name, (owner, values) in _ONLY_WITH.items():
                if name in self.model_fields_set and getattr(self, owner) not in values:
                    raise contract.without_effect(name, f"{owner} `{getattr(self, owner)}`")
            answers = (self.good_token.strip(), self.bad_token.strip())
            if self.layout == "math_shepherd" and (self.step_tag or "").strip() in answers:
                raise ValueError(
                    "`step_tag` is an answer: a model that answers each step with `good_token` or "
                    "`bad_token` is read by `layout` `turns`"
                )
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
        check_layout(_layout(options), tokenizer)
        self.labels(options, tokenizer)

    def labels(self, options: Options, tokenizer: TokenizerView) -> frozenset[int]:
        return frozenset(_labels(options, tokenizer)) if _reads_labels(options) else frozenset()

    def needs(self, options: Options) -> Needs:
        return Needs(values=not _reads_labels(options))

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """One, up to the last tag; its entries begin behind the first tag. Raises as `step_row`."""
        steps = step_row(sample, _layout(options))
        return (Row(steps.ids, start=int(steps.tags[0]) + 1, stop=len(steps.ids)),)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        row = step_row(sample, _layout(options))
        margins = _margins(sample, outputs[0], options)[row.tags - row.tags[0]]
        if options.scale == "signed":
            scores = np.tanh(margins / 2)  # 2 p - 1, in the form that keeps its digits near 0
        else:
            scores = np.exp(-np.logaddexp(0.0, -margins))  # p, in the form that never overflows
        counts = np.bincount(row.step_of, weights=sample.keep) > 0
        earnings = _earnings(scores, counts, options)
        place = _spread if options.placement == "spread" else _on_last_token
        last = np.flatnonzero(np.diff(row.step_of, append=len(scores)))
        return Signals(
            score=float(_REDUCTIONS[options.reduction](scores[counts])),
            values=place(earnings, row.step_of, sample.keep).astype(np.float32),
            step_scores=scores.astype(np.float32),
            step_ends=last,
        )


def _layout(options: Scorer.Options) -> StepLayout:
    """The format of the options, with its own texts where they name none."""
    separator, tag, joiner, opening = _DEFAULTS[options.layout]
    tag = options.step_tag or tag
    if tag.endswith("\n"):
        joiner = ""  # OpenR's models: a tag of line breaks is its own joiner
    if options.joiner is not None:
        joiner = options.joiner
    if options.opening is not None:
        opening = options.opening
    return StepLayout(
        options.layout,
        options.separator or separator,
        tag,
        joiner,
        opening,
        system=options.system,
        answer=options.good_token,
    )


def _reads_labels(options: Scorer.Options) -> bool:
    """Whether a step's probability comes from a language model's logits, not from a value head."""
    return options.layout in ("math_shepherd", "turns")


def _labels(options: Scorer.Options, tokenizer: TokenizerView) -> tuple[int, int]:
    """The good token and the bad one. Raises UnsupportedText: one is no token, or both are one."""
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
    """log p / (1 - p) at each position from the first tag on."""
    if _reads_labels(options):
        good, bad = _labels(options, sample.tokenizer)
        good_logits = outputs.logits[good].astype(np.float64)
        return np.asarray(good_logits - outputs.logits[bad].astype(np.float64))
    assert outputs.values is not None
    return outputs.values.astype(np.float64)


def _earnings(
    scores: Float64[np.ndarray, " k"], counts: Bool[np.ndarray, " k"], options: Scorer.Options
) -> Float64[np.ndarray, " k"]:
    """What each step earns; 0 for a step that does not count."""
    if options.form == "plain":
        return np.where(counts, scores, 0.0)
    exponents = np.where(counts, -scores / options.temperature, -np.inf)
    weights = np.exp(exponents - exponents.max())
    return np.asarray(weights / weights.sum() * scores)


def _on_last_token(
    earnings: Float64[np.ndarray, " k"],
    step_of: Int64[np.ndarray, " r"],
    keep: Bool[np.ndarray, " r"],
) -> Float64[np.ndarray, " r"]:
    """Each step's earnings on the last of its unmasked tokens."""
    values = np.zeros(len(keep))
    unmasked = np.flatnonzero(keep)
    last = unmasked[np.diff(step_of[unmasked], append=len(earnings)) > 0]
    values[last] = earnings[step_of[last]]
    return values


def _spread(
    earnings: Float64[np.ndarray, " k"],
    step_of: Int64[np.ndarray, " r"],
    keep: Bool[np.ndarray, " r"],
) -> Float64[np.ndarray, " r"]:
    """Each step's earnings in even shares on its unmasked tokens."""
    num_unmasked = np.bincount(step_of, weights=keep)
    shares = earnings / np.maximum(num_unmasked, 1.0)
    return np.where(keep, shares[step_of], 0.0)
