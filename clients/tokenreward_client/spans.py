"""A trainer's token ids as text + spans, so that a server that never saw the trainer's tokenizer
can reward each token.

The tokenizer is any object with the few methods of a Hugging Face one that `text_and_spans` lists;
none is imported. How it writes bytes into token strings is found out by trying: each known spelling
is tried, and one is believed only if the bytes that it gives are exactly the tokenizer's own
decoding. This module knows no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenreward_client.errors import BadArgument, NotText

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENTS = re.compile("\N{REPLACEMENT CHARACTER}+")
_METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def text_and_spans(
    tokenizer: Any, ids: Any, *, end_ids: Collection[int] | None = None
) -> tuple[str, list[list[int]], bool]:
    """The text of token ids, with one span of it per id.

        response, spans, finished = text_and_spans(tokenizer, response_ids)
        item = {"prompt": "2+2?", "response": response, "spans": spans, "finished": finished}
        rewards = client.score([item])[0].rewards  # len(rewards) == len(response_ids)

    The spans tile the text: each starts where the one before it ended. A character belongs to the
    token that completes it. A token that only holds earlier bytes of a character has a zero-width
    span, and so has a special token.

    Args:
        tokenizer: The trainer's tokenizer. It has `all_special_ids`, `convert_ids_to_tokens(ids)`
            and `decode(ids, skip_special_tokens=, clean_up_tokenization_spaces=)`;
            `added_tokens_decoder` and the ids of eos, bos, unk and pad are read if it has them.
        ids: The ids of a response [n], without padding: a list or an integer array.
        end_ids: The ids that end a turn; by default any special id but those of bos and unk.

    Returns:
        The text: `decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`,
        character by character. The spans [n][2]: half-open ranges of code points. Whether the last
        id ends the turn: the server then appends its own end-of-turn, and the last, zero-width span
        owns it.

    Raises:
        NotText: The ids are not valid text (a response that was cut inside a character, for
            example), an id is not in the vocabulary, or the tokenizer's decoding cannot be told
            apart by token.
        BadArgument: The ids end in padding.
    """
    ids = [int(id_) for id_ in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None and ids[-2:] == [pad, pad]:
        raise BadArgument("the last ids are padding: pass the response alone", param="ids")
    special = _special(tokenizer, ids)
    indices = [index for index, id_ in enumerate(ids) if id_ not in special]
    text = _decode(tokenizer, ids)
    widths = np.zeros(len(ids), dtype=np.int64)
    widths[indices] = _widths(tokenizer, [ids[index] for index in indices], indices, text)
    ends = np.cumsum(widths)
    spans = np.stack((ends - widths, ends), axis=1).tolist()
    is_finished = bool(ids) and ids[-1] in special and _ends_turn(tokenizer, ids[-1], end_ids)
    return text, spans, is_finished


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _special(tokenizer: Any, ids: list[int]) -> set[int]:
    """The ids that decoding leaves out.

    `all_special_ids` misses the reserved ids of some vocabularies, and decoding may keep an added
    token that is called special there. So both only name candidates, and decoding has the last
    word.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {id_ for id_, token in added.items() if getattr(token, "special", False)}
    candidates = (marked | set(tokenizer.all_special_ids)) & set(ids)
    return {id_ for id_ in candidates if not _decode(tokenizer, [id_])}


def _ends_turn(tokenizer: Any, id_: int, end_ids: Collection[int] | None) -> bool:
    """Whether a special id ends a turn."""
    if end_ids is not None:
        return id_ in end_ids
    # In some vocabularies bos or unk is the same id as eos.
    if id_ == getattr(tokenizer, "eos_token_id", None):
        return True
    bos, unk = (getattr(tokenizer, name, None) for name in ("bos_token_id", "unk_token_id"))
    return id_ not in (bos, unk)


def _widths(tokenizer: Any, ids: list[int], indices: list[int], text: str) -> npt.NDArray[np.int64]:
    """The number of characters [n] that each id completes. They sum to len(text).

    Args:
        tokenizer: The tokenizer.
        ids: The ids that are not special [n].
        indices: Where the caller has them [n], for messages.
        text: The decoding of the ids.
    """
    tokens = []
    for token, index in zip(tokenizer.convert_ids_to_tokens(ids), indices, strict=True):
        if token is None:
            raise NotText(f"ids[{index}] is not in the tokenizer's vocabulary", index=index)
        tokens.append(token)
    encoded = text.encode("utf-8", "surrogatepass")
    for pieces in _spellings(tokens):
        if b"".join(pieces) == encoded:
            return _num_completed(pieces, encoded)
    for pieces in _spellings(tokens):
        _refuse_invalid(pieces, text, indices)
    return _widths_by_decoding(tokenizer, ids, text)


def _num_completed(pieces: list[bytes], encoded: bytes) -> npt.NDArray[np.int64]:
    """The number of code points [n] of valid UTF-8 whose last byte lies in each piece."""
    # A code point ends before each byte that is not a continuation (10xxxxxx), and at the end.
    follows = (np.frombuffer(encoded + b" ", dtype=np.uint8)[1:] & 0xC0) != 0x80
    num_ended = np.concatenate(([0], np.cumsum(follows[: len(encoded)])))
    ends = np.cumsum([0, *map(len, pieces)])
    widths: npt.NDArray[np.int64] = np.diff(num_ended[ends])
    return widths


def _refuse_invalid(pieces: list[bytes], text: str, indices: list[int]) -> None:
    """Raise NotText if `text` is what these bytes decode to after a decoder has replaced, or left
    out, the ones that are not valid UTF-8."""
    joined = b"".join(pieces)
    # Decoders differ in how many replacement characters a broken run becomes.
    replaced = _REPLACEMENTS.sub("\ufffd", joined.decode("utf-8", "replace"))
    is_replaced = replaced == _REPLACEMENTS.sub("\ufffd", text)
    if not is_replaced and joined.decode("utf-8", "ignore") != text:
        return
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError as error:
        ends = np.cumsum([len(piece) for piece in pieces])
        index = indices[int(np.searchsorted(ends, error.start, side="right"))]
        message = (
            f"the ids do not decode to valid text: ids[{index}] holds bytes of a character that "
            "is never completed"
        )
        raise NotText(message, index=index) from None


def _widths_by_decoding(tokenizer: Any, ids: list[int], text: str) -> npt.NDArray[np.int64]:
    """The number of characters [n] that each id adds to the decoding of the ids before it.

    For decoders that no spelling fits: WordPiece joins tokens with spaces. An id that adds no whole
    character leaves it to the id that completes it.
    """
    if "\ufffd" in text:
        raise NotText(
            "the decoded text holds U+FFFD, which this tokenizer also writes for ids that are not "
            "valid text"
        )
    widths = np.zeros(len(ids), dtype=np.int64)
    additions = []
    # A decoder may look at the token before (whether to put a space), so the ids are decoded from
    # the start of the previous addition, and not from the start of the text: time stays linear.
    start, middle = 0, 0
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[start:middle])
        after = _decode(tokenizer, ids[start:end])
        if after.endswith("\ufffd") or not after.startswith(before):
            continue
        additions.append(after[len(before) :])
        widths[end - 1] = len(additions[-1])
        start, middle = middle, end
    if "".join(additions) != text:
        raise NotText(
            "this tokenizer's decoding cannot be told apart by token: it rewrites text across "
            "tokens"
        )
    return widths


def _spellings(tokens: list[str | bytes]) -> Iterator[list[bytes]]:
    """The bytes of each token, in each of the spellings that tokenizers are known to use."""
    yield [_byte_level(token) for token in tokens]
    metaspace = [_metaspace(token) for token in tokens]
    yield metaspace
    if metaspace:
        first, *rest = metaspace
        yield [first.removeprefix(b" "), *rest]  # Llama 2 drops one space at the start of the text
        yield [first.replace(b" ", b""), *rest]  # T5 drops every space of the first token
    yield [_character_per_byte(token) for token in tokens]


# The bytes of a token never change, and the size is about that of one vocabulary.
@lru_cache(maxsize=2**18)
def _byte_level(token: str | bytes) -> bytes:
    """GPT-2's spelling: one printable character per byte. A token with any other character stands
    for itself."""
    if isinstance(token, bytes):
        return token
    try:
        return bytes([_BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode()


@lru_cache(maxsize=2**18)
def _metaspace(token: str | bytes) -> bytes:
    """SentencePiece's spelling: U+2581 (a lower block) is a space, `<0xE4>` is a byte."""
    if isinstance(token, bytes):
        return token
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return token.replace(_METASPACE, " ").encode()


@lru_cache(maxsize=2**18)
def _character_per_byte(token: str | bytes) -> bytes:
    """ByT5's spelling: the character U+00E4 is the byte E4."""
    if isinstance(token, bytes):
        return token
    if len(token) == 1 and ord(token) < 0x100:
        return bytes([ord(token)])
    return token.encode()


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
