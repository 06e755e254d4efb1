"""Where each token ends in the text: a fast tokenizer's offsets, mended where normalising lost
them, or refused.

The tokenizers library carries offsets through normalisation one character at a time, and loses two
things. A character composed of several (e + U+0301) keeps the place of the first alone; marks put
into canonical order take each other's places. Both happen only between a character and the marks
behind it, so such a run is cut here only where normalising the two sides apart gives the same text,
and a token that ends at no cut ends at the next one: there its last character is complete. Offsets
that do not fit the text even so are not guessed at. It knows no spans and no model.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

# composes with nothing, so it shields what stands between two of it from the ends of the string
_ANCHOR = "_"
# a character and 30 marks, as in Unicode's stream-safe text (UAX #15); cuts take time squared in it
_MAX_RUN = 31
_CACHED = 2**16


class _Fate(Enum):
    """What becomes of a character that stands alone."""

    READ = "there is a token for it"
    NORMALISED_AWAY = "normalising leaves nothing of it"
    SPLIT_OFF = "it only separates words"
    UNKNOWN = "the model has no token for it, not even one for the unknown, and passes over it"


class Offsets:
    """Judges the offsets that `backend`, a `tokenizers.Tokenizer`, gives. Keeps what it learned of
    characters."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._normalise = _shielded(backend.normalizer)
        self._fate = lru_cache(_CACHED)(self._find_fate)
        self._wholes = lru_cache(_CACHED)(self._find_wholes)

    def ends(self, text: str, offsets: Sequence[tuple[int, int]]) -> Int64[np.ndarray, " t"] | None:
        """Where each token's characters end [t], in code points; they never decrease. None if
        `offsets` cannot be trusted: they leave the text, run backwards, skip a character that
        counts, or hold one that does not."""
        edges = itertools.chain.from_iterable(offsets)
        starts, ends = np.fromiter(edges, dtype=np.int64, count=2 * len(offsets)).reshape(-1, 2).T
        if (
            (starts < 0).any()
            or (starts > ends).any()
            or (ends > len(text)).any()
            or (np.diff(ends) < 0).any()
        ):
            return None
        wholes = self._wholes_of(text)
        if wholes is None:
            return None
        up = np.arange(len(text) + 1)
        covered = _covered(starts, ends, len(text))
        for start, end in wholes:
            up[start + 1 : end] = end
            covered[start:end] = covered[start:end].any()
        return up[ends] if self._account_for(text, covered, starts[starts < ends]) else None

    def _account_for(
        self, text: str, covered: Bool[np.ndarray, " n"], starts: Int64[np.ndarray, " _"]
    ) -> bool:
        """A character in no token must be white space or one that gives no token. Where the model,
        or the first rule of a character map, leaves one out, the library moves all that follows to
        the front: the next token then begins on it, or holds it."""
        fates = {char: self._fate(char) for char in set(text)}
        skipped = {text[index] for index in np.flatnonzero(~covered)}
        if any(fates[char] is _Fate.READ and not char.isspace() for char in skipped):
            return False
        held = np.flatnonzero(covered) if _Fate.UNKNOWN in fates.values() else ()
        begun = starts if _Fate.NORMALISED_AWAY in fates.values() else ()
        return all(fates[text[index]] is not _Fate.UNKNOWN for index in held) and all(
            fates[text[index]] is not _Fate.NORMALISED_AWAY for index in begun
        )

    def _find_fate(self, char: str) -> _Fate:
        if self._backend.encode(char, add_special_tokens=False).ids:
            return _Fate.READ
        normal = char if self._normalise is None else self._normalise(char)
        splitter = self._backend.pre_tokenizer
        if normal and splitter is not None and not splitter.pre_tokenize_str(normal):
            return _Fate.SPLIT_OFF
        return _Fate.UNKNOWN if normal else _Fate.NORMALISED_AWAY

    def _wholes_of(self, text: str) -> list[tuple[int, int]] | None:
        """The stretches [start, end) of several characters that normalise as one; None if one is
        too long to find."""
        if self._normalise is None or text.isascii():
            return []
        found = []
        for at, run in _runs(text):
            wholes = (self._wholes if len(run) <= _MAX_RUN else self._find_wholes)(run)
            if wholes is None:
                return None
            found += [(at + start, at + end) for start, end in wholes]
        return found

    def _find_wholes(self, run: str) -> list[tuple[int, int]] | None:
        assert self._normalise is not None
        normal = self._normalise(run)
        if normal == run:
            return []
        if len(run) > _MAX_RUN:
            return None
        inner = range(1, len(run))
        cuts = [
            at for at in inner if self._normalise(run[:at]) + self._normalise(run[at:]) == normal
        ]
        edges = [0, *cuts, len(run)]
        return [(start, end) for start, end in itertools.pairwise(edges) if end - start > 1]


def _covered(
    starts: Int64[np.ndarray, " t"], ends: Int64[np.ndarray, " t"], length: int
) -> Bool[np.ndarray, " n"]:
    """Which characters [length] lie in some token."""
    begun, done = (np.bincount(edges, minlength=length + 1)[:length] for edges in (starts, ends))
    return np.asarray(np.cumsum(begun - done) > 0)


def _shielded(normalizer: Any) -> Callable[[str], str] | None:
    """How the tokenizer normalises a stretch inside a text: without what it does at the ends of
    one."""
    if normalizer is None:
        return None
    frame: str = normalizer.normalize_str(_ANCHOR * 2)

    def normalise(inside: str) -> str:
        whole: str = normalizer.normalize_str(_ANCHOR + inside + _ANCHOR)
        return whole.removeprefix(frame[:-1]).removesuffix(frame[-1:])

    return normalise


def _runs(text: str) -> Iterator[tuple[int, str]]:
    """Each character with the marks behind it, where there are any: (where it stands, the run)."""
    marks = {char for char in set(text) if _joins(char)}
    if not marks:
        return
    start = 0
    for index in range(1, len(text) + 1):
        if index == len(text) or text[index] not in marks:
            if index - start > 1:
                yield start, text[start:index]
            start = index


@lru_cache(_CACHED)
def _joins(char: str) -> bool:
    """Whether it may compose with, or be put before, what stands in front of it: marks, and the
    vowels and finals of Hangul; by its decomposition, since half-width forms decompose to such."""
    first = unicodedata.normalize("NFKD", char)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff"
