"""What a scorer gets, gives and is: Sample and the model outputs of its rows in, Signals out.

A scorer is one class in one file of `scorers/`. It says which token rows its model must read (`rows`) and which outputs
it needs of them (`needs`); the engine unions both over all items of a batch and runs one pass. It knows no batches, no
HTTP, no units of the caller: alignment and credit come after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from tokenreward.wire import CreditName

Task = Literal["causal_lm", "reward_model"]
Gives = Literal["values", "score", "weights"]
WITHOUT_EFFECT = "value_error.without_effect"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One item in the scorer's own tokens.

    `terminal`: the last response token is a recognised end-of-turn. `keep`: False where the caller masked the token's
    unit; such tokens are read but count in no sum. `suffix_ids`: read after the response (reward models), own no entry.
    """

    prompt_ids: Int64[np.ndarray, " p"]
    response_ids: Int64[np.ndarray, " r"]
    terminal: bool
    keep: Bool[np.ndarray, " r"]
    suffix_ids: Int64[np.ndarray, " s"] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence for the model. Entries [start, stop) are the tokens whose outputs are wanted; the last token is the
    pooled one, whose attention row and value head a reward model is read at."""

    ids: Int64[np.ndarray, " n"]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Needs:
    """Outputs wanted of a row. `temperatures`: one logsumexp of the raw logits per temperature."""

    temperatures: frozenset[float] = frozenset()
    values: bool = False
    attention: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.temperatures | other.temperatures, self.values or other.values, self.attention or other.attention
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What the model said of one row, r = stop - start; only what was needed is there.

    `chosen`: raw logit of each response token, given the tokens before it. `lse[T]`: logsumexp(logits / T) at the
    positions that predict the response tokens and, last, at the position after them. `values`: value head at each
    response token; `pooled`: at the row's last token. `attention`: last layer, last token's row over the n tokens,
    mean over heads.
    """

    chosen: Float32[np.ndarray, " r"] | None = None
    lse: dict[float, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    values: Float32[np.ndarray, " r"] | None = None
    pooled: float | None = None
    attention: Float32[np.ndarray, " n"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """What a scorer says of one item, fp32. `values` are *increments* (they add up over a unit) or *levels* (the last
    token of a unit stands for it). `weights` are >= 0 and sum to 1 over the unmasked tokens."""

    score: float | None = None
    values: Float32[np.ndarray, " r"] | None = None
    kind: Literal["increments", "levels"] = "increments"
    weights: Float32[np.ndarray, " r"] | None = None


class Options(BaseModel):
    """Base of a scorer's options: frozen, strict, unknown ones are errors, each with a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def without_effect(name: str, because: str) -> PydanticCustomError:
    """For an option that others make idle: refused if the caller set it, dropped if it was the operator's default."""
    return PydanticCustomError(
        WITHOUT_EFFECT, "`{name}` has no effect with {because}", {"name": name, "because": because}
    )


class Scorer(ABC):
    """A way to judge a response. Stateless: one instance serves all items of a deployment.

    Class attributes: `Options`, its options; `task`, the kind of checkpoint it reads (None: any); `gives`, the signals
    it may give; `default_credit`; `score_is`, one sentence that defines `score` for `GET /v1/scorers`.
    """

    Options: ClassVar[type[Options]]
    task: ClassVar[Task | None]
    gives: ClassVar[frozenset[Gives]]
    default_credit: ClassVar[CreditName]
    score_is: ClassVar[str]

    def rows(self, sample: Sample, options: Any) -> tuple[Row, ...]:
        """The rows to read: by default one, prompt + response + suffix."""
        ids = np.concatenate([sample.prompt_ids, sample.response_ids, sample.suffix_ids])
        start = len(sample.prompt_ids)
        return (Row(ids=ids, start=start, stop=start + len(sample.response_ids)),)

    @abstractmethod
    def needs(self, options: Any) -> Needs:
        """The outputs wanted of each row."""

    @abstractmethod
    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Any) -> Signals:
        """The signals of one item, from the outputs of its rows. Raises ItemError."""
