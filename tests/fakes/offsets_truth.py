"""Where each token ends, read off a definition that no tokenizer's offsets have a part in.

A token's bytes are the next ones of the text as its tokenizer sees it: normalised, with its own
mark for a space. The token is complete with the shortest beginning of the text that holds every
character the tokens so far touch and is settled: whatever follows, its normalised form is a
beginning of that of the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenizers import normalizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
BYTE_TOKEN = re.compile("<0x(..)>")
# Of the other kinds one cannot see which bytes a token stands for: an unknown word, a slow
# tokenizer.
KNOWN = (
    "byte_level",
    "byte_level_nfc",
    "byte_level_nfd",
    "byte_level_lower",
    "unigram",
    "unigram_nfkc",
    "unigram_folded",
    "llama_2",
    "gemma",
    "llama_legacy",
    "characters",
)


def has_definition(kind: str, text: str) -> bool:
    """Whether the definition says where this text's tokens end."""
    if kind not in KNOWN or "<unk>" in text:  # an added token is no text
        return False
    # Of several spaces made one, any could be its last.
    return kind != "unigram_nfkc" or "  " not in normalizers.NFKC().normalize_str(text)


def model_input(kind: str, backend: Any, text: str) -> str:
    """What the model of the tokenizer is given, as text."""
    if backend.normalizer is not None and text:
        text = backend.normalizer.normalize_str(text)
    if kind == "characters":
        return "".join(char for char in text if backend.token_to_id(char) is not None)
    if kind.startswith("byte_level") or kind == "llama_legacy" or not text:
        return text
    spaced = text.replace(" ", "▁")
    return spaced if spaced.startswith("▁") else "▁" + spaced


def token_bytes(kind: str, token: str) -> bytes:
    if kind.startswith("byte_level"):
        return bytes(BYTES[char] for char in token)
    byte = BYTE_TOKEN.fullmatch(token) if kind in ("llama_2", "gemma", "llama_legacy") else None
    return bytes([int(byte[1], 16)]) if byte else token.encode()


def true_ends(kind: str, backend: Any, text: str) -> tuple[list[int], list[int]]:
    """Ids and ends of a text's tokens."""
    encoding = backend.encode(text, add_special_tokens=False)
    whole = model_input(kind, backend, text)
    pieces = [token_bytes(kind, token) for token in encoding.tokens]
    assert b"".join(pieces) == whole.encode(), "the definition does not know this tokenizer"
    first_bytes = np.cumsum([0, *(len(char.encode()) for char in whole)])[:-1]
    touched = np.searchsorted(first_bytes, np.cumsum([len(piece) for piece in pieces]), side="left")

    def beginning(end: int) -> str:
        return model_input(kind, backend, text[:end])

    ends = [end_of_characters(beginning, whole, int(n)) for n in touched]
    return list(encoding.ids), ends


def end_of_characters(beginning: Callable[[int], str], whole: str, num_characters: int) -> int:
    end = 0
    while len(beginning(end)) < num_characters or not whole.startswith(beginning(end)):
        end += 1
    return end
