"""What a scorer gets, gives and is: Sample and the model outputs of its rows in, Signals out.

A scorer is one class in one file of `scorers/`. It says which token rows its model must read
(`rows`) and which outputs it needs of them (`needs`); the engine unions both over all items of a
batch and runs one pass. It knows no batches, no HTTP, no units of the caller: alignment and credit
come after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from tokenreward.errors import SequenceTooLong
from tokenreward.wire import CreditName, Item

Task = Literal["causal_lm", "reward_model"]
Gives = Literal["values", "score", "weights"]
Model = Literal["policy", "reference"]
Reading = Literal["last", "last_step", "mean_step"]
WITHOUT_EFFECT = "value_error.without_effect"
MAX_WRITTEN_CHARACTERS = 64_000_000  # of all items of a request: some 20 s of a tokenizer


@runtime_checkable
class TokenizerView(Protocol):
    """The checkpoint's text in both directions, for scorers whose rows are not prompt + response.

    `param` is the field of the item that a text comes from, as an ItemError names it: `prompt`,
    `response`; None for a text that is no field of the item.
    """

    def prompt_from_text(self, text: str, *, param: str | None) -> Int64[np.ndarray, " p"]:
        """Raw text as a prompt, with at most one BOS in front."""

    def with_bos(self, ids: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " p"]:
        """Ids of raw text, with at most one BOS in front."""

    def prompt_from_messages(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        template_kwargs: dict[str, Any],
        *,
        param: str | None,
    ) -> Int64[np.ndarray, " p"]:
        """Messages through the chat template, with its generation prompt."""

    def pieces(
        self, text: str, *, param: str | None
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]:
        """Ids of a text alone, without special tokens around it, and where each token's characters
        end."""

    def text(self, ids: Int64[np.ndarray, " n"]) -> str:
        """The text of ids, special tokens included."""

    def single(self, text: str) -> int | None:
        """The one token that this text is; None if it is none or several."""

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be prompts."""

    def without_special(self, text: str) -> str:
        """The text with a line break in place of each special token that it spells, for quoting it
        in a prompt."""


@dataclass(slots=True, eq=False)
class TextBudget:
    """How many characters scorers may write for all items of one request, prompts of their own.

    A template of a few characters can show a long item many times, so a body of 16 MiB could ask
    for gigabytes of text. The budget is shared by the items of a request.
    """

    num_characters: int = MAX_WRITTEN_CHARACTERS

    def spend(self, num_characters: int) -> None:
        """Takes characters out of the budget.

        Raises:
            SequenceTooLong: There are not so many left.
        """
        if num_characters > self.num_characters:
            raise SequenceTooLong(
                "the prompts that scorers write for this request pass "
                f"{MAX_WRITTEN_CHARACTERS} characters: send fewer items in a request, or a shorter "
                "`template`"
            )
        self.num_characters -= num_characters


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One item in the scorer's own tokens, and the item that they came from.

    Attributes:
        prompt_ids: The prompt's tokens.
        response_ids: The response's tokens, an appended end-of-turn included.
        terminal: Whether the last response token is a recognised end-of-turn.
        keep: False where the caller masked the token's unit. Such tokens are read but count in no
            sum.
        item: What the caller wrote, for scorers that put it in other words.
        tokenizer: The checkpoint's text in both directions, for the same scorers.
        suffix_ids: Tokens that a reward model reads after the response. They own no entry.
        ends: Where each response token's characters end in a text, without the appended
            end-of-turn. None for ids, and for a tokenizer that cannot say.
        budget: How much text scorers may still write for the items of the request.
        memo: What a scorer's `rows` leaves for its `score`, under keys of its own.
    """

    prompt_ids: Int64[np.ndarray, " p"]
    response_ids: Int64[np.ndarray, " r"]
    terminal: bool
    keep: Bool[np.ndarray, " r"]
    item: Item
    tokenizer: TokenizerView
    suffix_ids: Int64[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ends: Int64[np.ndarray, " t"] | None = None
    budget: TextBudget = field(default_factory=lambda: TextBudget())
    memo: dict[Hashable, Any] = field(default_factory=dict)

    def unmasked(self, values: Float[np.ndarray, " r"]) -> Float64[np.ndarray, " k"]:
        """The unmasked tokens' values, in float64: what a score is made of."""
        unmasked: Float64[np.ndarray, " k"] = values[self.keep].astype(np.float64)
        return unmasked


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence of tokens for a model to read.

    Attributes:
        ids: The tokens, at least one. The last one is the pooled token: a reward model's score and
            its attention row are read there.
        start: First token whose outputs are wanted, 1 <= start <= stop.
        stop: End of the tokens whose outputs are wanted, exclusive.
        model: Which of the deployment's models reads the row.
    """

    ids: Int64[np.ndarray, " n"]
    start: int
    stop: int
    model: Model = "policy"


@dataclass(frozen=True, slots=True)
class Needs:
    """The outputs that are wanted of a row.

    Attributes:
        temperatures: One logsumexp of logits / T is computed per temperature T.
        entropies: The temperatures among them at which the distribution's entropy is wanted, too.
        labels: Tokens whose raw logits are wanted at every position that `Outputs.lse` has. Alone
            they cost a few dot products, and no logsumexp over the vocabulary.
        values: The value head at every token, the pooled one included.
        pooled: The value head at the pooled token alone, which costs less.
        attention: Readings of the last layer's attention (see `Outputs`).

    Raises:
        ValueError: No model has these outputs together, or an entropy has no temperature.
    """

    temperatures: frozenset[float] = frozenset()
    entropies: frozenset[float] = frozenset()
    labels: frozenset[int] = frozenset()
    values: bool = False
    pooled: bool = False
    attention: frozenset[Reading] = frozenset()

    def __post_init__(self) -> None:
        if not self.entropies <= self.temperatures:
            missing = sorted(self.entropies - self.temperatures)
            raise ValueError(f"entropies at {missing} need the same `temperatures`")
        if self.reads_logits and (self.values or self.pooled):
            raise ValueError("no checkpoint has both logits and a value head")

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            temperatures=self.temperatures | other.temperatures,
            entropies=self.entropies | other.entropies,
            labels=self.labels | other.labels,
            values=self.values or other.values,
            pooled=self.pooled or other.pooled,
            attention=self.attention | other.attention,
        )

    @property
    def reads_logits(self) -> bool:
        """Whether the language head is needed."""
        return bool(self.temperatures or self.labels)

    @property
    def task(self) -> Task | None:
        """The kind of checkpoint that has these outputs; None if any has."""
        if self.reads_logits:
            return "causal_lm"
        return "reward_model" if self.values or self.pooled else None


class RowRequest(NamedTuple):
    """A row to read, and the outputs that are wanted of it."""

    row: Row
    needs: Needs


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the model said of one row, r = stop - start; only what was needed is there.

    `chosen`: raw logit of each response token, given the tokens before it. `lse[T]`:
    logsumexp(logits / T) at the positions that predict the response tokens and, last, at the
    position after them; `entropy[T]`: the entropy of softmax(logits / T), nats, and
    `logits[token]`: the raw logit of a label, at the same positions. `values`: value head at the
    token before the response and at each response token; `pooled`: at the row's last token.
    `attention`, last layer, mean over heads: `last` [n], the row of the last token; `last_step`
    [n], the row of the token that predicted the last response token; `mean_step` [r], for each
    response token the mean over those tokens that predicted a later response token and pay it any
    attention (0 if none does).
    """

    chosen: Float32[np.ndarray, " r"] | None = None
    lse: dict[float, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    entropy: dict[float, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    logits: dict[int, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    values: Float32[np.ndarray, " r_and_1"] | None = None
    pooled: float | None = None
    attention: dict[Reading, Float32[np.ndarray, " _"]] = field(default_factory=dict)

    def log_probs(self, temperature: float) -> Float64[np.ndarray, " r"]:
        """log softmax(logits / temperature) of each response token, nats. Of rows that needed this
        temperature."""
        assert self.chosen is not None
        chosen, lse = (
            numbers.astype(np.float64) for numbers in (self.chosen, self.lse[temperature][:-1])
        )
        return np.asarray(chosen / temperature - lse)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Reasoning steps of a response. `scores` [k]: one per step; `last` [k]: the response token
    that ends each step, strictly increasing; the tokens up to it, from the end of the step before,
    are the step's."""

    scores: Float32[np.ndarray, " k"]
    last: Int64[np.ndarray, " k"]


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """What a scorer says of one item, fp32. `values` are *increments* (they add up over a unit) or
    *levels* (the last token of a unit stands for it). `weights` are >= 0 and sum to 1 over the
    unmasked tokens. `steps` are shown in the reply beside the rewards."""

    score: float | None = None
    values: Float32[np.ndarray, " r"] | None = None
    kind: Literal["increments", "levels"] = "increments"
    weights: Float32[np.ndarray, " r"] | None = None
    steps: Steps | None = None


class Options(BaseModel):
    """Base of a scorer's options: frozen, strict, unknown ones are errors, each with a
    description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def without_effect(name: str, because: str) -> PydanticCustomError:
    """For an option that others make idle: refused if the caller set it, dropped if it was the
    operator's default."""
    return PydanticCustomError(
        WITHOUT_EFFECT, "`{name}` has no effect with {because}", {"name": name, "because": because}
    )


class Scorer(ABC):
    """A way to judge a response. Stateless: one instance serves all items of a deployment.

    Attributes:
        Options: The options that it takes.
        task: The kind of checkpoint that it reads. None if its options say, or if any will do.
        models: The models of a deployment that its rows go to.
        gives: The signals that it may give.
        default_credit: The credit of a request that names none.
        score_is: One sentence that defines `score`, for `GET /v1/scorers`.
        log_probs_options: Options under which its values are log-probabilities of the response's
            tokens. With them it can be the reference of a KL penalty (`credit.kl.reference`).
        takes: Fields of an item that another scorer may fill in: `score`, from the scorer that the
            option `score_from` names.
    """

    Options: ClassVar[type[Options]]
    task: ClassVar[Task | None]
    models: ClassVar[frozenset[Model]] = frozenset({"policy"})
    gives: ClassVar[frozenset[Gives]]
    default_credit: ClassVar[CreditName]
    score_is: ClassVar[str]
    log_probs_options: ClassVar[dict[str, Any] | None] = None
    takes: ClassVar[frozenset[Literal["score"]]] = frozenset()

    def rows(self, sample: Sample, options: Any) -> tuple[Row, ...]:
        """The rows to read: by default one, prompt + response + suffix."""
        ids = np.concatenate([sample.prompt_ids, sample.response_ids, sample.suffix_ids])
        start = len(sample.prompt_ids)
        return (Row(ids=ids, start=start, stop=start + len(sample.response_ids)),)

    def task_for(self, options: Any) -> Task | None:
        """The kind of checkpoint that these options read; None if any will do."""
        return self.task or self.needs(options).task

    def check(self, options: Any, tokenizer: TokenizerView) -> None:  # noqa: B027 - most accept all
        """Refuses an operator's options that this checkpoint's tokenizer cannot serve.

        Raises:
            ItemError: Says why. By default nothing is refused.
        """

    def labels(self, options: Any, tokenizer: TokenizerView) -> frozenset[int]:
        """Tokens whose raw logits `score` reads, at every position of each row. By default none.

        Raises:
            ItemError: The tokenizer has no such tokens.
        """
        return frozenset()

    @abstractmethod
    def needs(self, options: Any) -> Needs:
        """The outputs wanted of each row."""

    def needs_without_values(self, options: Any) -> Needs:
        """The same where the credit asked for reads no values of tokens; by default as many."""
        return self.needs(options)

    @abstractmethod
    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Any) -> Signals:
        """The signals of one item, from the outputs of its rows. Raises ItemError."""
