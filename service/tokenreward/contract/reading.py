"""What a model reads for a scorer, and what it says: rows, needs, outputs.

It knows no model: `forward/` reads rows, and this module says what a row is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

Task = Literal["causal_lm", "reward_model"]
Model = Literal["policy", "reference"]
Reading = Literal["last", "last_step", "mean_step"]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence of tokens for a model to read.

    Attributes:
        ids: The tokens, at least one. The last one is the pooled token: a reward model's score and
            its attention row are read there.
        start: First token whose outputs are wanted, 1 <= start <= stop.
        stop: End of the tokens whose outputs are wanted, exclusive.
        model: Which of the deployment's models reads the row.
        num_first: How many tokens an encoder reads as the first text of a pair. All of them, or
            more, if there is no second text. By default, None, those before `start`.
    """

    ids: Int64[np.ndarray, " n"]
    start: int
    stop: int
    model: Model = "policy"
    num_first: int | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """The outputs that are wanted of a row.

    Attributes:
        temperatures: One logsumexp of logits / T is computed per temperature T.
        entropies: The temperatures among them at which the distribution's entropy is wanted, too.
        labels: Tokens whose raw logits are wanted at every position that `Outputs.lse` has. Alone
            they cost a small product, and no logsumexp over the vocabulary.
        top_k: How many of the largest logits are wanted at each response token, and with them the
            token's own rank; 0 for the rank alone, None for neither.
        values: The value head at every token, the pooled one included.
        pooled: The value head at the pooled token alone, which costs less.
        attention: Readings of the last layer's attention (see `Outputs`).

    Raises:
        ValueError: No model has these outputs together, or an entropy or `top_k` has no
            temperature.
    """

    temperatures: frozenset[float] = frozenset()
    entropies: frozenset[float] = frozenset()
    labels: frozenset[int] = frozenset()
    top_k: int | None = None
    values: bool = False
    pooled: bool = False
    attention: frozenset[Reading] = frozenset()

    def __post_init__(self) -> None:
        if not self.entropies <= self.temperatures:
            missing = sorted(self.entropies - self.temperatures)
            raise ValueError(f"entropies at {missing} need the same `temperatures`")
        if self.top_k is not None and not self.temperatures:
            raise ValueError("`top_k` needs `temperatures`: both come of one look at all logits")
        if self.reads_logits and (self.values or self.pooled):
            raise ValueError("no checkpoint has both logits and a value head")

    def __or__(self, other: Needs) -> Needs:
        top_ks = [needs.top_k for needs in (self, other) if needs.top_k is not None]
        return Needs(
            temperatures=self.temperatures | other.temperatures,
            entropies=self.entropies | other.entropies,
            labels=self.labels | other.labels,
            top_k=max(top_ks, default=None),
            values=self.values or other.values,
            pooled=self.pooled or other.pooled,
            attention=self.attention | other.attention,
        )

    @property
    def reads_logits(self) -> bool:
        """Whether the language head is needed."""
        return bool(self.temperatures or self.labels)

    def num_of_tokens(self, num_tokens: int) -> int:
        """How many numbers of the vocabulary the outputs hold for so many response tokens, beside
        one logsumexp and one logit a token: what makes them and their reply large."""
        return (num_tokens + 1) * len(self.labels) + num_tokens * 2 * (self.top_k or 0)

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
    """What the model says of one row: the outputs that were needed, and no others.

    r = stop - start is the number of response tokens, n the number of tokens in the row. Attention
    is that of the last layer that has any, mean over heads.

    Attributes:
        chosen: The raw logit of each response token, given the tokens before it.
        lse: For each temperature T, logsumexp(logits / T) at the positions that predict the
            response tokens and, last, at the position after them.
        entropy: For each temperature T, the entropy of softmax(logits / T) at the same positions,
            in nats.
        logits: For each label, its raw logit at the same positions.
        top_logits: The largest raw logits, in descending order, at the positions that predict the
            response tokens. It may have more columns than this row's scorer needs.
        top_ids: Their tokens. Equal logits are in the order of their ids.
        ranks: The rank of each response token among all tokens, 1 for the largest logit. It agrees
            with `top_ids`.
        values: The value head at the token before the response and at each response token.
        pooled: The value head at the row's last token.
        scores: By name, every label there, of a value head whose operator names one or weighs them.
        attention: Three readings. `last` [n] is the row of the last token. `last_step` [n] is the
            row of the token that predicted the last response token. `mean_step` [r] is, for each
            response token, the mean over the tokens that predicted a later response token and pay
            it any attention; 0 if none does.
    """

    chosen: Float32[np.ndarray, " r"] | None = None
    lse: dict[float, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    entropy: dict[float, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    logits: dict[int, Float32[np.ndarray, " r+1"]] = field(default_factory=dict)
    top_logits: Float32[np.ndarray, " r k"] | None = None
    top_ids: Int64[np.ndarray, " r k"] | None = None
    ranks: Int64[np.ndarray, " r"] | None = None
    values: Float32[np.ndarray, " r_and_1"] | None = None
    pooled: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    attention: dict[Reading, Float32[np.ndarray, " _"]] = field(default_factory=dict)

    def log_probs(self, temperature: float) -> Float64[np.ndarray, " r"]:
        """log softmax(logits / temperature) of each response token, in nats.

        The row's needs must have had this temperature.
        """
        assert self.chosen is not None
        return self.log_probs_of(self.chosen, temperature)

    def log_probs_of(
        self, logits: Float32[np.ndarray, " r ..."], temperature: float
    ) -> Float64[np.ndarray, " r ..."]:
        """log softmax of raw logits at each response token, in nats: of one there, or of several
        [r, k]. Condition as `log_probs`."""
        lse = self.lse[temperature][:-1].astype(np.float64)
        lse = lse.reshape(-1, *(1,) * (logits.ndim - 1))
        return np.asarray(logits.astype(np.float64) / temperature - lse)

    def answers(self, request: RowRequest) -> bool:
        """Whether these are the outputs that a row needs, by kind and length."""
        row, needs = request
        num_tokens = row.stop - row.start
        lengths: list[tuple[np.ndarray | None, int]]
        lengths = [(self.lse.get(key), num_tokens + 1) for key in needs.temperatures]
        lengths += [(self.entropy.get(key), num_tokens + 1) for key in needs.entropies]
        lengths += [(self.logits.get(key), num_tokens + 1) for key in needs.labels]
        if needs.temperatures:
            lengths.append((self.chosen, num_tokens))
        if needs.top_k is not None:
            lengths.append((self.ranks, num_tokens))
        if needs.top_k:
            lengths += [(self.top_logits, num_tokens), (self.top_ids, num_tokens)]
        if needs.values:
            lengths.append((self.values, num_tokens + 1))
        for reading in needs.attention:
            num_places = num_tokens if reading == "mean_step" else len(row.ids)
            lengths.append((self.attention.get(reading), num_places))
        if needs.pooled and self.pooled is None:
            return False
        return all(array is not None and len(array) == length for array, length in lengths)
