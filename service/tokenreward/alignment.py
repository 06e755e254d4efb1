"""Tokens, characters and the caller's units: which unit owns a token, and how numbers per token
become numbers per unit.

Units are the response's tokens, or spans of its text that tile it. A token belongs to the span that
holds its last character. A special token appended after the text belongs to the last span. This
module knows numpy and nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tokenreward.errors import SpansDoNotTile

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def fingerprint(vocab: Mapping[str, int]) -> str:
    """A name of a vocabulary: where it is equal, equal ids are equal tokens.

    Args:
        vocab: The id of each token, as `tokenizer.get_vocab()` gives it.
    """
    digest = hashlib.sha256()
    for token, token_id in sorted(vocab.items(), key=lambda entry: (entry[1], entry[0])):
        # The length stands before the token, because a token may hold any separator.
        digest.update(f"{token_id} {len(token)} {token}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def tiles(spans: npt.ArrayLike, length: int, *, param: str) -> Ints:
    """Spans that tile [0, length): the first starts at 0, each starts where the one before ends,
    and the last ends at `length`. Zero-width spans are legal.

    Args:
        spans: Pairs of start and end, in code points; the end is exclusive.
        length: Code points of the response.
        param: The field, for errors.

    Returns:
        The spans as an array [n, 2].

    Raises:
        SpansDoNotTile: Names the first span that does not.
    """
    array = np.asarray(spans, dtype=np.int64).reshape(-1, 2)
    if not len(array):
        raise SpansDoNotTile(
            f"there are no spans but the response has {length} characters", param=param
        )
    expected = np.concatenate([[0], array[:-1, 1]])
    wrong = np.flatnonzero((array[:, 0] != expected) | (array[:, 1] < array[:, 0]))
    if len(wrong):
        index = int(wrong[0])
        start, end = array[index].tolist()
        raise SpansDoNotTile(
            f"the span is [{start}, {end}] but must start at {expected[index]} and not end before "
            "it",
            param=f"{param}[{index}]",
        )
    if array[-1, 1] != length:
        raise SpansDoNotTile(
            f"the spans end at {array[-1, 1]} but the response has {length} characters (Unicode "
            "code points)",
            param=f"{param}[{len(array) - 1}]",
        )
    return array


def owners(ends: Ints, spans: Ints, *, num_appended: int = 0) -> Ints:
    """The span that owns each token.

    Args:
        ends: Where each token's characters end [r].
        spans: Spans that tile the text [n, 2].
        num_appended: How many tokens stand after the text. They go to the last span.

    Returns:
        The index of the span [r + num_appended].
    """
    last_character = np.maximum(ends - 1, 0)
    inside = np.searchsorted(spans[:, 1], last_character, side="right")
    # A token without characters at the very end of the text, such as an end-of-text marker, goes to
    # the last span, too.
    inside = np.minimum(inside, len(spans) - 1)
    return np.concatenate([inside, np.full(num_appended, len(spans) - 1)]).astype(np.int64)


def scored_spans(spans: Ints, *, finished: bool) -> Bools:
    """Which spans carry reward.

    Args:
        spans: Spans that tile the text [n, 2].
        finished: Whether end-of-turn was appended. Then the last span owns a token, even if it is
            zero-width.

    Returns:
        False for each other zero-width span [n].
    """
    scored: Bools = spans[:, 1] > spans[:, 0]
    if finished:
        scored[-1] = True
    return scored


def sum_over_units(values: Floats, owner: Ints, num_units: int) -> Floats:
    """The sum [num_units] of each unit's token values [r], added in float64.

    It is for increments and weights. `owner` [r] is the unit of each token.
    """
    return np.bincount(owner, weights=values.astype(np.float64), minlength=num_units).astype(
        np.float32
    )


def last_of_units(values: Floats, owner: Ints, num_units: int) -> Floats:
    """The value [num_units] at each unit's last token; 0 for a unit that owns no token.

    It is for levels. `owner` [r] is the unit of each token.
    """
    units = np.zeros(num_units, dtype=np.float32)
    # Owners never decrease, and of repeated indices the last assignment stays.
    units[owner] = values
    return units
