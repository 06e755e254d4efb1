"""Scorer `generative`: a language model is asked about the response, and the reward is the
probability of its answer.

A verifier prompt quotes prompt and response, and the model's distribution p over the next token is
read: one forward pass, no sampling. With Yes and No as sets of tokens (Zhang et al. 2024,
"Generative Verifiers", 2408.15240):

    yes            log p(Yes),   p(S) = sum over the tokens of S
    yes_minus_no   log p(Yes) - log p(No)
    graded         sum_k worth_k p(label_k) / sum_k p(label_k)
    logit          the raw logit of one token

`yes` is the endogenous reward with a horizon of one (2506.23235): in the state s = (prompt,
response, question), with the single action Yes, r = alpha log pi(Yes | s) + V(s). V(s) is dropped,
because the response is part of s and V would not cancel between two responses. `yes` is the default
because it is the published score. `yes_minus_no` ranks responses as `yes` does where the model
answers nothing but Yes or No. Elsewhere it ranks better, because the share of other answers
cancels.

`logit` is the score of reward models that were trained on the logit of one token and kept the
language model's head (Llama-3.1-Nemotron-70B-Reward: the token with id 0, behind the conversation).
They are asked nothing: the conversation itself is read, unless there is a `template`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat, PrivateAttr, field_validator, model_validator

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals, Task, TokenizerView
from tokenreward.errors import UnsupportedText
from tokenreward.scorers._prompts.quotation import quote
from tokenreward.scorers._prompts.spellings import MAX_SPELLINGS, Spelling, single_tokens
from tokenreward.scorers._prompts.template import template
from tokenreward.scorers._prompts.texts import behind_bos

_YES = ["Yes", " Yes", "yes", " yes", "YES", " YES"]
_NO = ["No", " No", "no", " no", "NO", " NO"]
_LABELS = ["1", "2", "3", "4", "5"]

Tokens = dict[str, list[int]]  # by the name of the option that spells them

_QUOTED = "Prompt:\n{{ prompt }}\n\nResponse:\n{{ response }}\n\n"
_QUESTION = (
    "Is the response correct, and does it do what the prompt asks? Answer {{ yes }} or "
    "{{ no }}.\nAnswer:"
)
_GRADING = (
    "How good is the response? Give it one of these grades, from worst to best: "
    "{{ labels }}.\nGrade:"
)
_VARIABLES = ("prompt", "messages", "response", "yes", "no", "labels")
_IDLE = {
    "yes": ("labels", "values", "token"),
    "yes_minus_no": ("labels", "values", "token"),
    "graded": ("yes", "no", "token"),
    "logit": ("yes", "no", "labels", "values"),
}
_READ = {"yes": ("yes",), "yes_minus_no": ("yes", "no"), "graded": ("labels",), "logit": ()}


class Scorer(contract.Scorer):
    """A score per response from a language model's answer about it; it gives no per-token values.

    The quotation is text: ids are decoded, special tokens become line breaks, several messages
    stand with their roles, masked units are quoted like all others. The verifier's prompt is a
    message of the user if the tokenizer has a chat template, else raw text. The option `system` is
    the system message in front of it, or a paragraph in front of raw text. The item's `tools` and
    `chat_template_kwargs` belong to the item's own prompt and play no part.
    """

    class Options(contract.Options):
        mode: Literal["yes", "yes_minus_no", "graded", "logit"] = Field(
            default="yes",
            description=(
                "log p(Yes), or log p(Yes) - log p(No), or the expected worth of `labels` among "
                "themselves, or the raw logit of `token`."
            ),
        )
        template: str | None = Field(
            default=None,
            description=(
                "Verifier's prompt, in Jinja without calls; it reads `prompt`, `messages`, "
                "`response`, `yes`, `no`, `labels`. Default: asks for the mode's answer; logit: "
                "none, the conversation is read."
            ),
        )
        system: str | None = Field(
            default=None,
            min_length=1,
            description="System message in front of the verifier's prompt, taken as it is.",
        )
        chat_template_kwargs: dict[str, Any] = Field(
            default={}, description="Passed to the chat template with the verifier's prompt."
        )
        yes: list[Spelling] = Field(
            default=_YES,
            min_length=1,
            max_length=MAX_SPELLINGS,
            description=(
                "Spellings of Yes, each a single token (of the default: those that are); asked "
                "for: the first."
            ),
        )
        no: list[Spelling] = Field(
            default=_NO, min_length=1, max_length=MAX_SPELLINGS, description="The same for No."
        )
        labels: list[Spelling] = Field(
            default=_LABELS,
            min_length=2,
            max_length=MAX_SPELLINGS,
            description="graded: grades, each a single token.",
        )
        values: Annotated[list[FiniteFloat], Field(fail_fast=True)] | None = Field(
            default=None,
            description="graded: what each label is worth. Default: the number that it spells.",
        )
        token: int = Field(
            default=0,
            ge=0,
            lt=2**31,
            description="logit: the token, by its id, whose logit is the score.",
        )

        _tokens: dict[TokenizerView, Tokens | UnsupportedText] = PrivateAttr(default_factory=dict)

        @field_validator("template")
        @classmethod
        def _shows_the_response(cls, text: str | None) -> str | None:
            if text is None:
                return None
            try:
                variables = template(text).variables
            except UnsupportedText as error:
                raise ValueError(f"`template` {error.message}") from None
            if not variables <= set(_VARIABLES):
                raise ValueError(
                    f"`template` reads a name that is not there; there are {', '.join(_VARIABLES)}"
                )
            if "response" not in variables:
                raise ValueError("`template` does not show `response`")
            return text

        @model_validator(mode="after")
        def _only_what_has_an_effect(self) -> Scorer.Options:
            for name in _IDLE[self.mode]:
                if name in self.model_fields_set:
                    raise contract.without_effect(name, f"mode `{self.mode}`")
            for name in ("system", "chat_template_kwargs"):
                if self.reads_conversation and name in self.model_fields_set:
                    raise contract.without_effect(name, "no `template`")
            return self

        @model_validator(mode="after")
        def _each_label_is_worth_something(self) -> Scorer.Options:
            if len(self.worth) != len(self.labels):
                raise ValueError(
                    f"`values` has {len(self.worth)} entries, `labels` has {len(self.labels)}"
                )
            return self

        @property
        def reads_conversation(self) -> bool:
            """Whether prompt and response are read as they are, and no question about them."""
            return self.mode == "logit" and self.template is None

        @property
        def worth(self) -> list[float]:
            """What each label is worth. Raises ValueError if no option says it."""
            if self.values is not None:
                return self.values
            try:
                numbers = [float(label) for label in self.labels]
            except ValueError:
                numbers = [math.nan]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("`values` is required: not all `labels` are numbers")
            return numbers

        def tokens(self, tokenizer: TokenizerView) -> Tokens:
            """The distinct tokens of each list of spellings that the mode reads.

            They are read once for all items of a request. Raises UnsupportedText.
            """
            if tokenizer not in self._tokens:
                try:
                    self._tokens[tokenizer] = _read_spellings(self, tokenizer)
                except UnsupportedText as error:
                    self._tokens[tokenizer] = error
            tokens = self._tokens[tokenizer]
            if isinstance(tokens, UnsupportedText):
                raise UnsupportedText(tokens.message)  # an error of each item: each has its place
            return tokens

    task = "causal_lm"
    gives = frozenset({"score"})
    default_credit = "last"
    score_is = (
        "log p(Yes) after a verifier prompt (`mode`: or log p(Yes) - log p(No), or the expected "
        "grade, or a token's raw logit)"
    )

    def task_for(self, options: Options) -> Task | None:
        return "causal_lm"

    def check(self, options: Options, tokenizer: TokenizerView) -> None:
        options.tokens(tokenizer)

    def labels(self, options: Options, tokenizer: TokenizerView) -> frozenset[int]:
        if options.mode == "logit":
            return frozenset({options.token})
        return frozenset().union(*options.tokens(tokenizer).values())

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """One, the verifier's prompt, or the conversation; its only entry is behind the last token.

        Raises:
            UnsupportedText: The template fails on this item, or the item cannot be quoted or read.
            SequenceTooLong: The request's verifier prompts are too much text.
        """
        if options.reads_conversation:
            (row,) = super().rows(sample, options)
            return (Row(row.ids, start=len(row.ids), stop=len(row.ids)),)
        question, tokenizer = _question(sample, options), sample.tokenizer
        if options.system is not None:
            sample.budget.spend(len(options.system))
        if tokenizer.has_chat_template or options.chat_template_kwargs:
            messages = [{"role": "user", "content": question}]
            if options.system is not None:
                messages.insert(0, {"role": "system", "content": options.system})
            ids = tokenizer.prompt_from_messages(
                messages, None, options.chat_template_kwargs, param=None
            )
        else:
            if options.system is not None:
                question = behind_bos(f"{options.system}\n\n", question, tokenizer)
            ids = tokenizer.prompt_from_text(question, param=None)
        return (Row(ids, start=len(ids), stop=len(ids)),)

    def needs(self, options: Options) -> Needs:
        """The normaliser is read for `yes` alone; the other modes compare logits of labels."""
        return Needs(temperatures=frozenset({1.0})) if options.mode == "yes" else Needs()

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        if options.mode == "logit":
            return Signals(score=float(outputs[0].logits[options.token][-1]))
        logits = {}
        for name, tokens in options.tokens(sample.tokenizer).items():
            last = [outputs[0].logits[token][-1] for token in tokens]
            logits[name] = np.asarray(last, dtype=np.float64)
        if options.mode == "graded":
            return Signals(score=_expected(logits["labels"], options.worth))
        yes = float(np.logaddexp.reduce(logits["yes"]))
        if options.mode == "yes_minus_no":
            return Signals(score=yes - float(np.logaddexp.reduce(logits["no"])))
        return Signals(score=yes - float(outputs[0].lse[1.0][-1]))


def _question(sample: Sample, options: Scorer.Options) -> str:
    """The verifier's prompt. Raises UnsupportedText, SequenceTooLong."""
    text = options.template
    if text is None:
        text = _QUOTED + (_GRADING if options.mode == "graded" else _QUESTION)
    quotation = quote(sample)
    ranked = [label for _, label in sorted(zip(options.worth, options.labels, strict=True))]
    try:
        return template(text).render(
            sample.budget,
            **quotation,
            yes=options.yes[0].strip(),
            no=options.no[0].strip(),
            labels=", ".join(label.strip() for label in ranked),
        )
    except UnsupportedText as error:
        raise UnsupportedText(f"option `template` {error.message}") from None


def _read_spellings(options: Scorer.Options, tokenizer: TokenizerView) -> Tokens:
    """Reads `Scorer.Options.tokens`. Of the default spellings of Yes and No, one that is a token is
    enough."""
    tokens = {}
    for name in _READ[options.mode]:
        spellings = getattr(options, name)
        need_all = name == "labels" or name in options.model_fields_set
        tokens[name] = single_tokens(name, spellings, tokenizer, need_all=need_all)
    if len(tokens.get("labels", options.labels)) < len(options.labels):
        raise UnsupportedText("two of option `labels` are the same token")
    if set(tokens.get("yes", ())) & set(tokens.get("no", ())):
        raise UnsupportedText("options `yes` and `no` share a token of this tokenizer")
    return tokens


def _expected(logits: np.ndarray, worth: Sequence[float]) -> float:
    """The mean worth under the softmax of the labels' logits [k]."""
    return float(np.exp(logits - np.logaddexp.reduce(logits)) @ np.asarray(worth))
