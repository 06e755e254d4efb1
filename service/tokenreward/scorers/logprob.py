"""Scorer `logprob`: what a language model thinks of each token of a response, and of others in its
place.

    r_t = log pi(y_t | x, y_<t),   pi = softmax(Q / temperature)

over all rows of the model's head, those among them that no token of its tokenizer has. `top_k` and
`candidates` also give, at each response token, the tokens that the model holds most likely and the
tokens that the caller names, from the same pass over the vocabulary: a teacher's log-probs for a
forward or a generalised KL (Agarwal et al. 2023, "On-Policy Distillation of Language Models",
2306.13649), or the mass on an answer. Under a temperature the order of the tokens is the same.

`endogenous` with `form: logprob` gives the same rewards, and no others beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tokenreward import contract
from tokenreward.contract import Needs, Outputs, Row, Sample, Signals, Table, TokenizerView
from tokenreward.errors import UnsupportedText

# One request must not make the others wait: each candidate is a row of the product, and each of the
# largest is sorted at every token and written into the reply.
MAX_TOP_K = 128
MAX_CANDIDATES = 1024


class Scorer(contract.Scorer):
    """Per-token log-probability from a causal language model; values are increments."""

    class Options(contract.Options):
        temperature: float = Field(
            default=1.0, gt=0, allow_inf_nan=False, description="Divides the logits."
        )
        aggregation: Literal["sum", "mean"] = Field(
            default="sum", description="How `score` is made of the unmasked tokens' rewards."
        )
        top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None = Field(
            default=None,
            description=(
                "Also the so many most likely tokens at each token, and its own rank; 0: the rank "
                f"alone. At most {MAX_TOP_K}."
            ),
        )
        candidates: (
            Annotated[
                list[Annotated[int, Field(ge=0, lt=2**31)]],
                Field(min_length=1, max_length=MAX_CANDIDATES, fail_fast=True),
            ]
            | None
        ) = Field(
            default=None,
            description=(
                f"Also the log-probs of these token ids at each token. At most {MAX_CANDIDATES}."
            ),
        )

    task = "causal_lm"
    # Whoever asks for a reference reads its rewards alone.
    log_probs_options: ClassVar[dict[str, Any] | None] = {"top_k": None, "candidates": None}
    gives = frozenset({"values", "score"})
    default_credit = "values"
    score_is = "sum of the unmasked tokens' log-probabilities (`aggregation`: or their mean)"

    def rows(self, sample: Sample, options: Options) -> tuple[Row, ...]:
        """One row. Raises UnsupportedText for spans with `top_k` or `candidates`."""
        has_tables = options.top_k is not None or options.candidates is not None
        if has_tables and sample.item.spans is not None:
            raise UnsupportedText(
                "`top_k` and `candidates` say what else could stand in the place of a token, and "
                "spans are no tokens: leave out the one or the other",
                param="spans",
            )
        return super().rows(sample, options)

    def labels(self, options: Options, tokenizer: TokenizerView) -> frozenset[int]:
        return frozenset(options.candidates or ())

    def needs(self, options: Options) -> Needs:
        return Needs(temperatures=frozenset({options.temperature}), top_k=options.top_k)

    def score(self, sample: Sample, outputs: Sequence[Outputs], options: Options) -> Signals:
        (read,) = outputs
        values = read.log_probs(options.temperature).astype(np.float32)
        unmasked = sample.unmasked(values)
        tables: dict[Table, np.ndarray] = {}
        if options.top_k is not None:
            assert read.ranks is not None
            tables["ranks"] = read.ranks
        if options.top_k:
            assert read.top_logits is not None
            assert read.top_ids is not None
            # Another scorer of the request may have wanted more of them.
            largest = read.top_logits[:, : options.top_k]
            tables["top_logprobs"] = read.log_probs_of(largest, options.temperature)
            tables["top_token_ids"] = read.top_ids[:, : options.top_k]
        if options.candidates is not None:
            logits = np.stack([read.logits[label][:-1] for label in options.candidates], axis=1)
            tables["candidate_logprobs"] = read.log_probs_of(logits, options.temperature)
        score = unmasked.sum() if options.aggregation == "sum" else unmasked.mean()
        return Signals(score=float(score), values=values, tables=tables)
