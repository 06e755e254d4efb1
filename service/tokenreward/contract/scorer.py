"""What a scorer is, and the signals that it gives.

The service finds a scorer by its class alone: options, listing, credit and checks at load all come
from what the class says here. This module knows no scorer by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from tokenreward.contract.reading import Model, Needs, Outputs, Row, Task
from tokenreward.contract.sample import Sample, TokenizerView
from tokenreward.wire import CreditName
from tokenreward.wire.reply import Table

Gives = Literal["values", "score", "weights"]
WITHOUT_EFFECT = "value_error.without_effect"


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """What a scorer says of one item.

    Attributes:
        score: The number of the whole response.
        values: A number per response token.
        kind: *Increments* add up: a unit's value is the sum of its tokens'. *Levels* replace one
            another: the last token of a unit stands for it.
        weights: How much of the score each token earns: at least 0, and 1 in sum over the unmasked
            tokens.
        scores: Further numbers of the whole response by name, which the reply shows beside the
            score.
        step_scores: A number per reasoning step, which the reply shows beside the rewards.
        step_ends: The response token that ends each step, strictly increasing; the last one is the
            response's. A step's tokens are those after the end of the step before.
        tables: Further numbers of each response token, which the reply shows beside the rewards.
            They are of tokens and of no units: masked tokens have them, too, and an item with
            spans none. Each has the name of a `Table`.
    """

    score: float | None = None
    values: Float32[np.ndarray, " r"] | None = None
    kind: Literal["increments", "levels"] = "increments"
    weights: Float32[np.ndarray, " r"] | None = None
    scores: dict[str, float] | None = None
    step_scores: Float32[np.ndarray, " k"] | None = None
    step_ends: Int64[np.ndarray, " k"] | None = None
    tables: Mapping[Table, np.ndarray] = field(default_factory=dict)


class Options(BaseModel):
    """Base of a scorer's options: frozen and strict, and an unknown option is an error.

    Each field has a default and a description, which `GET /v1/scorers` shows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def without_effect(name: str, because: str) -> PydanticCustomError:
    """The error for an option that another option makes idle.

    Raise it in a validator. The caller's request is refused if the caller set the option. If it was
    the operator's default, the default is dropped and the request served.

    Args:
        name: The idle option.
        because: The other option and its value, for example "form `logprob`".
    """
    return PydanticCustomError(
        WITHOUT_EFFECT, "`{name}` has no effect with {because}", {"name": name, "because": because}
    )


class Scorer(ABC):
    """A way to judge a response. Stateless: one instance serves all items of a deployment.

    The class attributes say what it is, `needs` and `score` are its work. Everything else has a
    default.

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

    def task_for(self, options: Any) -> Task | None:
        """The kind of checkpoint that these options read; None if any will do."""
        return self.task or self.needs(options).task

    def check(self, options: Any, tokenizer: TokenizerView) -> None:  # noqa: B027 - most accept all
        """Refuses an operator's options that this checkpoint's tokenizer cannot serve.

        It is called once, when the deployment loads. By default nothing is refused.

        Raises:
            ItemError: Says why.
        """

    def rows(self, sample: Sample, options: Any) -> tuple[Row, ...]:
        """The rows to read: by default one, prompt + response + suffix.

        Raises:
            ItemError: This item cannot be read. It fails alone.
        """
        ids = np.concatenate([sample.prompt_ids, sample.response_ids, sample.suffix_ids])
        num_prompt = len(sample.prompt_ids)
        stop = num_prompt + len(sample.response_ids)
        return (Row(ids, max(1, num_prompt), stop, num_first=sample.num_first),)

    def labels(self, options: Any, tokenizer: TokenizerView) -> frozenset[int]:
        """Tokens whose raw logits `score` reads, at every position of each row. By default none.

        Raises:
            ItemError: The tokenizer has no such tokens.
        """
        return frozenset()

    @abstractmethod
    def needs(self, options: Any) -> Needs:
        """The outputs that are wanted of each row. `labels` are added to them."""

    def needs_without_values(self, options: Any) -> Needs:
        """The outputs that are wanted when the credit reads no values of tokens.

        By default the same. A scorer whose values cost more than its score says less here, and its
        `score` then gives no `values`.
        """
        return self.needs(options)

    @abstractmethod
    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Any) -> Signals:
        """The signals of one item.

        Args:
            sample: The item.
            outputs: What the model says of each of its rows, in the order of `rows`.
            options: The request's.

        Raises:
            ItemError: This item cannot be scored. It fails alone.
        """


def merged_options(scorer: Scorer, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """A caller's options over the operator's. A default of the operator is dropped if the
    caller's options leave it without effect.

    Raises:
        ValidationError: They are wrong.
    """
    merged = {**defaults, **options}
    while True:
        try:
            return scorer.Options.model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            idle = str(first.get("ctx", {}).get("name"))
            is_default = idle in merged and idle not in options
            if first["type"] != WITHOUT_EFFECT or not is_default:
                raise
            del merged[idle]
