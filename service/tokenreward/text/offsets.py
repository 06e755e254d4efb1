"""Says where each token ends in the text: a fast tokenizer's offsets, corrected where normalising
made them wrong, or refused.

The tokenizers library carries offsets through normalisation one character at a time, and loses two
things:

- A character that is composed of several (e + U+0301) keeps the place of the first alone.
- Marks that are put into canonical order take each other's places.

Both happen only within a run: a character and the marks behind it. So a run is cut only where
normalising the two sides apart gives the same text as normalising the run. The stretch between two
cuts normalises as one, and a token that ends inside it ends at its end: there its last character is
complete. Offsets that still do not fit the text are not guessed at. It knows no spans and no model.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64

# Composes with nothing. Between two of it a text is normalised as it is inside a longer one.
_ANCHOR = "_"
# A character and 30 marks, as in Unicode's stream-safe text (UAX #15). Finding the cuts of a run
# takes time that grows with its length squared.
_MAX_RUN = 31
_MAX_CACHED = 2**16

_Stretch = tuple[int, int]  # [start, end), in code points


# What a tokenizer makes of a character that stands alone:
# - "read": there is a token for it;
# - "normalised away": normalising leaves nothing of it;
# - "separator": it only separates words;
# - "passed over": the model has no token for it, not even one for the unknown, and passes over it.
_Treatment = Literal["read", "normalised away", "separator", "passed over"]


class Offsets:
    """Corrects and checks the offsets of one tokenizer. It keeps what it learned of characters and
    runs.

    Args:
        backend: A `tokenizers.Tokenizer` without a post-processor.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._normalise = _inner_normaliser(backend.normalizer)
        self._treatment = lru_cache(_MAX_CACHED)(self._find_treatment)
        self._stretches_of_run = lru_cache(_MAX_CACHED)(self._find_stretches)

    def ends(self, text: str, offsets: Sequence[tuple[int, int]]) -> Int64[np.ndarray, " t"] | None:
        """Where the characters of each token end.

        Args:
            text: The text that was encoded.
            offsets: The backend's [start, end) of each token, in code points.

        Returns:
            The ends [t], in code points; they never decrease. None if `offsets` cannot be trusted:
            they leave the text, run backwards, skip a character that counts, or hold one that does
            not.
        """
        edges = itertools.chain.from_iterable(offsets)
        starts, ends = np.fromiter(edges, dtype=np.int64, count=2 * len(offsets)).reshape(-1, 2).T
        if (starts < 0).any() or (starts > ends).any() or (ends > len(text)).any():
            return None
        if (np.diff(ends) < 0).any():
            return None
        stretches = self._stretches(text)
        if stretches is None:
            return None
        # Which characters lie in some token: more tokens began than ended up to there.
        num_starts = np.bincount(starts, minlength=len(text) + 1)[: len(text)]
        num_ends = np.bincount(ends, minlength=len(text) + 1)[: len(text)]
        covered = np.cumsum(num_starts - num_ends) > 0
        rounded_up = np.arange(len(text) + 1)
        for start, end in stretches:
            rounded_up[start + 1 : end] = end
            covered[start:end] = covered[start:end].any()
        if not self._explains(text, covered, starts[starts < ends]):
            return None
        return rounded_up[ends]

    def _explains(
        self, text: str, covered: Bool[np.ndarray, " n"], starts: Int64[np.ndarray, " _"]
    ) -> bool:
        """Whether each character is covered or left out for a reason.

        A character in no token must be white space, or one that gives no token. Where the model
        passes over a character, or the first rule of a character map removes one, the library moves
        all offsets behind it to the front: the next token then seems to hold the character that was
        passed over, or to begin on the one that was removed.
        """
        treatments = {char: self._treatment(char) for char in set(text)}
        for char in {text[index] for index in np.flatnonzero(~covered)}:
            if treatments[char] == "read" and not char.isspace():
                return False
        # Most texts have no such characters, so their tokens need not be looked at one by one.
        suspects: list[tuple[_Treatment, Int64[np.ndarray, " _"]]] = [
            ("passed over", np.flatnonzero(covered)),
            ("normalised away", starts),
        ]
        for treatment, places in suspects:
            if treatment not in treatments.values():
                continue
            if any(treatments[text[index]] == treatment for index in places):
                return False
        return True

    def _find_treatment(self, char: str) -> _Treatment:
        if self._backend.encode(char, add_special_tokens=False).ids:
            return "read"
        normal = char
        if self._normalise is not None:
            normal = self._normalise(char)
        if not normal:
            return "normalised away"
        splitter = self._backend.pre_tokenizer
        if splitter is not None and not splitter.pre_tokenize_str(normal):
            return "separator"
        return "passed over"

    def _stretches(self, text: str) -> list[_Stretch] | None:
        """The stretches of several characters that normalise as one; None if a run is too long to
        find them."""
        if self._normalise is None or text.isascii():
            return []
        stretches: list[_Stretch] = []
        for place, run in _runs(text):
            # Long runs are not cached: they cost memory, and they are only compared, not cut.
            find = self._stretches_of_run if len(run) <= _MAX_RUN else self._find_stretches
            of_run = find(run)
            if of_run is None:
                return None
            stretches += [(place + start, place + end) for start, end in of_run]
        return stretches

    def _find_stretches(self, run: str) -> list[_Stretch] | None:
        assert self._normalise is not None
        normal = self._normalise(run)
        if normal == run:
            return []
        if len(run) > _MAX_RUN:
            return None
        inner = range(1, len(run))
        cuts = [i for i in inner if self._normalise(run[:i]) + self._normalise(run[i:]) == normal]
        edges = [0, *cuts, len(run)]
        return [(start, end) for start, end in itertools.pairwise(edges) if end - start > 1]


def _inner_normaliser(normalizer: Any) -> Callable[[str], str] | None:
    """How the tokenizer normalises a stretch inside a text: without what it does at the ends of a
    text, such as a prefix. None if it does not normalise."""
    if normalizer is None:
        return None
    frame: str = normalizer.normalize_str(_ANCHOR * 2)

    def normalise(inside: str) -> str:
        whole: str = normalizer.normalize_str(_ANCHOR + inside + _ANCHOR)
        return whole.removeprefix(frame[:-1]).removesuffix(frame[-1:])

    return normalise


def _runs(text: str) -> Iterator[tuple[int, str]]:
    """Each character that has marks behind it, with these marks: (its place, the run)."""
    marks = {char for char in set(text) if _joins(char)}
    if not marks:
        return
    start = 0
    for index in range(1, len(text) + 1):
        if index == len(text) or text[index] not in marks:
            if index - start > 1:
                yield start, text[start:index]
            start = index


@lru_cache(_MAX_CACHED)
def _joins(char: str) -> bool:
    """Whether a character may compose with the one in front of it, or be put before it.

    These are marks, and the vowels and finals of Hangul. Its decomposition decides, because
    half-width forms decompose to such characters.
    """
    first = unicodedata.normalize("NFKD", char)[0]
    return unicodedata.category(first)[0] == "M" or "\u1160" <= first <= "\u11ff"
