"""Encodes text into token ids and says where each token ends in the text.

Nothing is ever truncated or padded, and no special tokens are put around a text. It knows no chat
templates, and does not know what a text is for.
"""

from __future__ import annotations

import copy
import re
import threading
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from tokenreward.errors import SequenceTooLong, UnsupportedText
from tokenreward.text.offsets import Offsets

_LONG_CHARACTERS = 1000  # such a text takes some 0.3 ms

# An `Encoding` takes 255 bytes for each byte of text and more, and tokenising a megabyte takes 2 s.
# So a text whose tokens would have more than 8 bytes each is counted in pieces first, and refused
# once the pieces have far too many tokens. Almost every text that fits has fewer bytes.
_LIKELY_TOKEN_BYTES = 8
_PIECE_CHARACTERS = 2**15
# A cut may make several tokens of one, and a text within the limit is never refused. A cut costs
# no more tokens than the longest token has bytes, far fewer than the tokens of a piece.
_PIECES_TOLERANCE = 2
_PIECES_MARGIN_TOKENS = 256
_SHARED_CHARACTERS = 2**16  # longer texts are tokenised one at a time


class TextEncoder:
    """Text to ids.

    Args:
        tokenizer: A transformers tokenizer, fast (with a Rust backend) or in plain Python.
        max_tokens: The most tokens that a caller's text may have; None for no limit.
        limit: The setting that says so, for errors.
    """

    def __init__(
        self, tokenizer: Any, max_tokens: int | None = None, limit: str = "max_sequence_tokens"
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens, self._limit = max_tokens, limit
        self._long_text = threading.Lock()
        # A copy, because transformers changes the original's truncation and padding at its calls.
        self._backend: Any = copy.deepcopy(getattr(tokenizer, "backend_tokenizer", None))
        if self._backend is not None:
            # tokenizer.json may ask for either. Rewards are per token, so both would do silent
            # damage.
            self._backend.no_truncation()
            self._backend.no_padding()
            # The post-processor adds special tokens, which are never wanted here, and may trim
            # white space off the ends of tokens.
            self._backend.post_processor = None
            # transformers hands this setting down at its first call, which may not have come yet.
            self._backend.encode_special_tokens = tokenizer.split_special_tokens

    def read(self, text: str) -> Any:
        """The backend's `Encoding`, with `ids` and `offsets`; of a tokenizer in plain Python, which
        has no backend, the list of ids. Has no limit, and raises what the backend raises."""
        if self._backend is None:
            return self._tokenizer.encode(text, add_special_tokens=False)
        if len(text) < _LONG_CHARACTERS:
            return self._backend.encode(text, add_special_tokens=False)
        # The result is the same, but other threads run meanwhile: `encode` keeps Python's lock
        # until it returns, `encode_batch` lets it go.
        return self._backend.encode_batch([text], add_special_tokens=False)[0]

    def ids(self, text: str) -> Int64[np.ndarray, " n"]:
        """Ids of a text that the checkpoint or the operator wrote, without a limit."""
        return _ids(self.read(text))

    def caller_ids(self, text: str, *, param: str | None) -> Int64[np.ndarray, " n"]:
        """Ids of a text that a caller sent. Raises UnsupportedText, SequenceTooLong."""
        return _ids(self._read_caller_text(text, param=param))

    def caller_ids_and_ends(
        self, text: str, *, param: str | None
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]:
        """The same ids, and where the characters of each token end, in code points.

        The ends are None if the tokenizer is in plain Python, or if its offsets cannot be trusted
        (see `Offsets`).

        Raises:
            UnsupportedText: The text cannot be encoded, for example a lone surrogate.
            SequenceTooLong: The text has more than `max_tokens` tokens.
        """
        encoding = self._read_caller_text(text, param=param)
        offsets = getattr(encoding, "offsets", None)
        if offsets is None:
            return _ids(encoding), None
        return _ids(encoding), self._offsets.ends(text, offsets)

    @cached_property
    def _offsets(self) -> Offsets:
        return Offsets(self._backend)

    def refuse_long(self, text: str, *, param: str | None) -> None:
        """Refuses a text that has far too many tokens, before it is tokenised as a whole.

        Raises:
            SequenceTooLong: It has. A text of at most `max_tokens` tokens is never refused.
        """
        num_bytes = len(text.encode("utf-8", "surrogatepass"))
        if self._max_tokens is None or num_bytes <= max(
            _PIECE_CHARACTERS, _LIKELY_TOKEN_BYTES * self._max_tokens
        ):
            return
        if self._swallows_space:
            text = re.sub(r"\s+", " ", text)
        most = _PIECES_TOLERANCE * self._max_tokens + _PIECES_MARGIN_TOKENS
        num_tokens = 0
        for start in range(0, len(text), _PIECE_CHARACTERS):
            num_tokens += len(self.read(text[start : start + _PIECE_CHARACTERS]))
            if num_tokens > most:
                raise SequenceTooLong(
                    f"the text has {num_bytes} bytes and far more tokens than "
                    f"`{self._limit}`, which is {self._max_tokens}",
                    param=param,
                )

    @cached_property
    def _swallows_space(self) -> bool:
        """Whether the tokenizer has tokens that take all white space around them, as `<mask>`."""
        added = self._tokenizer.added_tokens_decoder.values()
        return any(token.lstrip or token.rstrip for token in added)

    def _read_caller_text(self, text: str, *, param: str | None) -> Any:
        try:
            with self._long_text if len(text) > _SHARED_CHARACTERS else nullcontext():
                self.refuse_long(text, param=param)
                encoding = self.read(text)
        except (TypeError, UnicodeError, OverflowError) as error:
            raise UnsupportedText(
                f"the text cannot be tokenised: {type(error).__name__}", param=param
            ) from None
        if self._max_tokens is not None and len(encoding) > self._max_tokens:
            # Refused before ids and offsets become lists, which take hundreds of bytes a token.
            raise SequenceTooLong(
                f"the text is {len(encoding)} tokens, `{self._limit}` is {self._max_tokens}",
                param=param,
            )
        return encoding


def _ids(encoding: Any) -> Int64[np.ndarray, " n"]:
    return np.asarray(getattr(encoding, "ids", encoding), dtype=np.int64)
