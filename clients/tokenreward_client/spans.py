"""A trainer's token ids as text + spans, so that a server that never saw the trainer's tokenizer
can reward each token.

The tokenizer is any object with the few methods of a Hugging Face one that `Detokenizer` lists;
none is imported. How it writes bytes into token strings is not asked but found out: each known
spelling is tried, and one is believed only if the bytes it gives are exactly the tokenizer's own
decoding. It knows no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tokenreward_client.errors import BadArgument, NotText

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENTS = re.compile("\N{REPLACEMENT CHARACTER}+")
_METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Detokenizer(Protocol):
    """What is used of a tokenizer. Read too, where they exist: `added_tokens_decoder` and the ids
    of eos, bos, unk and pad."""

    @property
    def all_special_ids(self) -> Sequence[int]: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> Sequence[str | bytes | None]: ...
    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool = ..., **kwargs: Any
    ) -> str: ...


def text_and_spans(
    tokenizer: Detokenizer, ids: Any, *, end_ids: Collection[int] | None = None
) -> tuple[str, list[list[int]], bool]:
    """The text of `ids`, one half-open code point range per id, and whether the response ends with
    end-of-turn.

    The ranges tile the text: each starts where the last ended. A character belongs to the token
    that completes it, so a token that only holds earlier bytes of one has a zero-width span, as a
    special token has. `finished` is True if the last id is special: the server then appends its own
    end-of-turn, which that last, zero-width span owns. `end_ids` says which ids end a turn; by
    default any special one but bos and unk.

    `ids` is a list or an integer array, without padding. The text is `decode(ids,
    skip_special_tokens=True, clean_up_tokenization_spaces=False)`, character by character. Send the
    three as an item's `response`, `spans` and `finished`.

    Raises NotText: the ids are not valid text (a response cut inside a character, for one), an id
    is not in the vocabulary, or the tokenizer's decoding cannot be told apart by token.
    BadArgument: `ids` end in padding.
    """
    ids = [int(id_) for id_ in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None and ids[-2:] == [pad, pad]:
        raise BadArgument("the ids end in padding: pass the response alone", param="ids")
    special = _special(tokenizer, ids)
    kept = [index for index, id_ in enumerate(ids) if id_ not in special]
    text = _decode(tokenizer, ids)
    widths = np.zeros(len(ids), dtype=np.int64)
    widths[kept] = _widths(tokenizer, [ids[index] for index in kept], kept, text)
    ends = np.cumsum(widths)
    spans = np.stack((ends - widths, ends), axis=1).tolist()
    return text, spans, bool(ids) and ids[-1] in special and _ends_turn(tokenizer, ids[-1], end_ids)


def _decode(tokenizer: Detokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _special(tokenizer: Detokenizer, ids: list[int]) -> set[int]:
    """The ids that decoding leaves out. `all_special_ids` misses the reserved ones of some
    vocabularies, and an added token that is called special there may yet be decoded; so decoding
    has the last word."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {id_ for id_, token in added.items() if getattr(token, "special", False)}
    candidates = (marked | set(tokenizer.all_special_ids)) & set(ids)
    return {id_ for id_ in candidates if not _decode(tokenizer, [id_])}


def _ends_turn(tokenizer: Detokenizer, id_: int, end_ids: Collection[int] | None) -> bool:
    if end_ids is not None:
        return id_ in end_ids
    if id_ == getattr(tokenizer, "eos_token_id", None):
        return True
    return id_ not in (
        getattr(tokenizer, "bos_token_id", None),
        getattr(tokenizer, "unk_token_id", None),
    )


def _widths(
    tokenizer: Detokenizer, ids: list[int], indices: list[int], text: str
) -> npt.NDArray[np.int64]:
    """Characters [n] that each of these ids completes; they sum to len(text). `indices`: where the
    caller has them."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    for token, index in zip(tokens, indices, strict=True):
        if token is None:
            raise NotText(f"ids[{index}] is not in the tokenizer's vocabulary", index=index)
    known = [token for token in tokens if token is not None]
    encoded = text.encode("utf-8", "surrogatepass")
    for spell in _SPELLINGS:
        if b"".join(pieces := spell(known)) == encoded:
            return _completed(pieces, encoded)
    for spell in _SPELLINGS:
        _refuse_invalid(spell(known), text, indices)
    return _widths_by_decoding(tokenizer, ids, text)


def _completed(pieces: list[bytes], encoded: bytes) -> npt.NDArray[np.int64]:
    """Code points of valid UTF-8 whose last byte lies in each piece."""
    # A code point ends before each byte that is not a continuation (10xxxxxx), and at the end.
    follows = (np.frombuffer(encoded + b" ", dtype=np.uint8)[1:] & 0xC0) != 0x80
    num_ended = np.concatenate(([0], np.cumsum(follows[: len(encoded)])))
    ends = np.cumsum([0, *map(len, pieces)])
    widths: npt.NDArray[np.int64] = np.diff(num_ended[ends])
    return widths


def _refuse_invalid(pieces: list[bytes], text: str, indices: list[int]) -> None:
    """Raise NotText if `text` is what these bytes decode to once their errors are painted over, or
    left out."""
    joined = b"".join(pieces)
    # Decoders differ in how many replacement characters a broken run becomes.
    painted = _REPLACEMENTS.sub("\ufffd", joined.decode("utf-8", "replace"))
    if painted != _REPLACEMENTS.sub("\ufffd", text) and joined.decode("utf-8", "ignore") != text:
        return
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError as error:
        index = indices[
            int(
                np.searchsorted(
                    np.cumsum([len(piece) for piece in pieces]), error.start, side="right"
                )
            )
        ]
        message = (
            f"the ids do not decode to valid text: ids[{index}] holds bytes of a character that "
            "is never completed"
        )
        raise NotText(message, index=index) from None


def _widths_by_decoding(tokenizer: Detokenizer, ids: list[int], text: str) -> npt.NDArray[np.int64]:
    """For decoders that no spelling fits (WordPiece joins with spaces): what each id adds to the
    decoding of the ids just before it. Ids that add no whole character leave it to the one that
    completes it."""
    if "\ufffd" in text:
        raise NotText(
            "the decoded text holds U+FFFD, which this tokenizer also writes for ids that are not "
            "valid text"
        )
    widths = np.zeros(len(ids), dtype=np.int64)
    said, start, read = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, after = _decode(tokenizer, ids[start:read]), _decode(tokenizer, ids[start:end])
        if after.endswith("\ufffd") or not after.startswith(before):
            continue
        said.append(after[len(before) :])
        widths[end - 1] = len(said[-1])
        start, read = read, end
    if "".join(said) != text:
        raise NotText(
            "this tokenizer's decoding cannot be told apart by token: it rewrites text across "
            "tokens"
        )
    return widths


def _byte_level(tokens: Sequence[str | bytes]) -> list[bytes]:
    """GPT-2's spelling: one printable character per byte. A token with any other character stands
    for itself."""
    return [_byte_level_piece(token) for token in tokens]


@lru_cache(maxsize=2**18)  # about one vocabulary; the spelling of a token never changes
def _byte_level_piece(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()


def _metaspace(tokens: Sequence[str | bytes]) -> list[bytes]:
    """SentencePiece's spelling: a lower block is a space, `<0xE4>` is a byte."""
    return [_metaspace_piece(token) for token in tokens]


@lru_cache(maxsize=2**18)
def _metaspace_piece(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_METASPACE, " ").encode()


def _metaspace_less_one(tokens: Sequence[str | bytes]) -> list[bytes]:
    """As Llama 2 decodes: one space at the start of the text is dropped."""
    pieces = _metaspace(tokens)
    return [pieces[0].removeprefix(b" "), *pieces[1:]] if pieces else []


def _metaspace_less_all(tokens: Sequence[str | bytes]) -> list[bytes]:
    """As T5 decodes: the first token loses every space."""
    pieces = _metaspace(tokens)
    return [pieces[0].replace(b" ", b""), *pieces[1:]] if pieces else []


def _one_character_per_byte(tokens: Sequence[str | bytes]) -> list[bytes]:
    """ByT5's spelling: the character U+00E4 is the byte E4."""
    return [_one_byte_piece(token) for token in tokens]


@lru_cache(maxsize=2**18)
def _one_byte_piece(token: str | bytes) -> bytes:
    if isinstance(token, bytes):
        return token
    return bytes([ord(token)]) if len(token) == 1 and ord(token) < 0x100 else token.encode()


def _byte_alphabet() -> Iterator[tuple[str, int]]:
    """GPT-2's table: printable Latin-1 stands for itself, the other bytes for the characters from
    U+0100 on."""
    stand_in = 0x100
    for byte in range(0x100):
        if 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD):
            yield chr(byte), byte
        else:
            yield chr(stand_in), byte
            stand_in += 1


_BYTE_OF = dict(_byte_alphabet())
_SPELLINGS: tuple[Callable[[Sequence[str | bytes]], list[bytes]], ...] = (
    _byte_level,
    _metaspace,
    _metaspace_less_one,
    _metaspace_less_all,
    _one_character_per_byte,
)
