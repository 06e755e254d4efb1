"""The caller's units of a response: which unit each token belongs to, and which carry reward.

It checks what an item says per unit and the ids that it brings, and knows no scorer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int64

from tokenreward.alignment import owners, scored_spans, tiles
from tokenreward.errors import (
    EmptyResponse,
    LengthMismatch,
    TokenOutOfVocabulary,
    UnsupportedText,
)
from tokenreward.wire import Item


def units_of(
    item: Item, num_tokens: int, ends: Int64[np.ndarray, " t"] | None
) -> tuple[Int64[np.ndarray, " r"], Bool[np.ndarray, " u"]]:
    """The unit [r] of each token, and which units [u] carry reward. Raises SpansDoNotTile,
    UnsupportedText, LengthMismatch."""
    if item.spans is None:
        owner = np.arange(num_tokens)
        scored = np.ones(num_tokens, dtype=np.bool_)
    else:
        assert isinstance(item.response, str)
        spans = tiles(item.spans, len(item.response), param="spans")
        if ends is None:
            raise UnsupportedText("this tokenizer cannot say where tokens end", param="spans")
        num_appended = num_tokens - len(ends)
        owner = owners(ends, spans, num_appended=num_appended)
        scored = scored_spans(spans, finished=num_appended > 0)
    for name in ("mask", "policy_logprobs", "ref_logprobs"):
        entries = getattr(item, name)
        if entries is not None and len(entries) != len(scored):
            raise LengthMismatch(
                f"there are {len(entries)} entries, the response has {len(scored)} units",
                param=name,
            )
    if item.mask is not None:
        scored = scored & np.asarray(item.mask, dtype=np.bool_)
    return owner, scored


def refuse_empty(item: Item) -> None:
    """Raises EmptyResponse for an empty text. A policy may stop at once, but then the caller says
    so: an empty text by itself looks like a mistake."""
    if item.response == "" and item.finished is not True:
        raise EmptyResponse(
            "the response has no tokens: with `finished: true`, an empty text is scored as "
            "end-of-turn alone",
            param="response",
        )


def check_ids(ids: Int64[np.ndarray, " n"], size: int, *, param: str) -> None:
    """Raises TokenOutOfVocabulary for the first id that is not below `size`."""
    wrong = np.flatnonzero((ids < 0) | (ids >= size))
    if len(wrong):
        place = int(wrong[0])
        raise TokenOutOfVocabulary(
            f"entry {place} is {ids[place]}, the model takes ids 0 to {size - 1} there",
            param=param,
        )
