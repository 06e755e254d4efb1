"""The special tokens that an encoder's tokenizer writes around one text, and around two.

    one text       [CLS] text [SEP]
    two, a pair    [CLS] first [SEP] second [SEP]

It knows no chat templates, and no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64

from tokenreward.text.encoder import TextEncoder


def special_tokens(tokenizer: Any, encoder: TextEncoder, *texts: str) -> list[list[int]]:
    """The tokens before the first of these texts, between each two, and behind the last one, as
    the tokenizer writes them together. All are empty if the texts are not found among them."""
    ids = list(tokenizer(*texts)["input_ids"])
    runs, start = [], 0
    for text in texts:
        own = encoder.ids(text).tolist()
        places = [i for i in range(start, len(ids)) if ids[i : i + len(own)] == own]
        if not places:
            return [[], *([] for _ in texts)]
        runs.append(ids[start : places[0]])
        start = places[0] + len(own)
    return [*runs, ids[start:]]


def wrapped(
    ids: Int64[np.ndarray, " n"], before: list[int], behind: list[int]
) -> Int64[np.ndarray, " p"]:
    """Ids with special tokens on both sides; those that are there are not written again."""
    before = [] if ids[: len(before)].tolist() == before else before
    behind = [] if ids[len(ids) - len(behind) :].tolist() == behind else behind
    return np.concatenate([before, ids, behind]).astype(np.int64)


def second_texts(ids: Int64[np.ndarray, " n"], around_pair: list[list[int]]) -> list[int]:
    """Where the second text may begin in ids of one text or of a pair: behind each run of the
    tokens that stand between two texts. The ids of one text have no such place: what is at their
    end belongs to that text.

    Args:
        ids: The ids.
        around_pair: The special tokens before, between and behind the two texts of a pair.
    """
    _, between, behind = around_pair
    own = ids.tolist()
    stop = len(own) - len(between) + 1
    if own[len(own) - len(behind) :] == behind:
        stop -= len(behind)
    starts = [i + len(between) for i in range(stop) if own[i : i + len(between)] == between]
    return starts if between else []
