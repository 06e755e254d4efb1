"""Where tokens end: the definition holds for every tokenizer whatever it normalises, or its offsets
are refused."""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from tokenizers import Tokenizer, models, normalizers

from fakes import vocabularies
from fakes.offsets_truth import KNOWN, has_definition, true_ends
from fakes.texts import TEXTS
from fakes.vocabularies import KINDS
from tokenreward.text.offsets import Offsets

TRUSTED = [kind for kind in KINDS if kind not in ("python_bytes", "characters")]


def backend_of(kind: str) -> Any:
    return KINDS[kind]().backend_tokenizer


def ends_of(backend: Any, text: str) -> list[int] | None:
    ends = Offsets(backend).ends(text, backend.encode(text, add_special_tokens=False).offsets)
    return None if ends is None else ends.tolist()


@pytest.mark.parametrize("kind", KNOWN)
@settings(max_examples=150)
@given(text=TEXTS)
def test_a_token_ends_where_its_last_byte_does(kind: str, text: str) -> None:
    assume(has_definition(kind, text))
    backend = backend_of(kind)
    ends = ends_of(backend, text)
    if kind == "characters":  # it may refuse, and then nothing is wrong
        assume(ends is not None)
    assert ends == true_ends(kind, backend, text)[1]


@pytest.mark.parametrize("kind", TRUSTED)
@settings(max_examples=100)
@given(text=TEXTS)
def test_no_text_is_refused_and_ends_never_decrease(kind: str, text: str) -> None:
    ends = ends_of(backend_of(kind), text)
    assert ends is not None
    assert ends == sorted(ends)
    assert not ends or 0 < ends[0] <= ends[-1] <= len(text)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("byte_level_nfc", "e\u0301a", [2, 3]),  # é in one token: complete with its mark
        ("byte_level_nfc", "e\u0301\u0302", [2, 3, 3]),  # é, and a second mark that stays
        ("byte_level_nfc", "\u1112\u1161\u11ab", [3, 3, 3]),  # the three bytes of 한
        ("byte_level_nfc", "a\u0315\u0301b", [3, 3, 3, 3, 4]),  # á comes of the first and the last
        (
            "byte_level_nfd",
            "a\u0315\u0301b",
            [1, 3, 3, 3, 4],
        ),  # marks change places: the acute comes first
        ("byte_level_nfd", "é!", [1, 1, 2]),
        ("byte_level_lower", "İ!", [1, 1, 1, 2]),  # its lower case is two characters
        ("byte_level", "e\u0301", [1, 2]),
    ],
)
def test_worked_examples(kind: str, text: str, expected: list[int]) -> None:
    assert ends_of(backend_of(kind), text) == expected


@pytest.mark.parametrize(
    "offsets",
    [
        [(0, 1), (1, 4)],
        [(-1, 1), (1, 3)],
        [(0, 1), (3, 2)],
        [(0, 2), (1, 3), (0, 1)],
        [(0, 1), (2, 3)],
        [(1, 3)],
        [],
    ],
    ids=[
        "beyond the end",
        "before the start",
        "end first",
        "backwards",
        "skips b",
        "skips a",
        "skips all",
    ],
)
def test_offsets_that_do_not_fit_the_text_are_refused(offsets: list[tuple[int, int]]) -> None:
    for kind in ("byte_level", "byte_level_nfc", "unigram"):
        assert Offsets(backend_of(kind)).ends("abc", offsets) is None
    assert Offsets(backend_of("byte_level")).ends("abc", [(0, 1), (1, 3)]) is not None


def test_characters_that_normalising_or_splitting_leaves_out_may_be_skipped() -> None:
    assert ends_of(backend_of("bert"), "is\u200d 4\u0007.") == [2, 5, 7]
    assert ends_of(backend_of("bert"), f" {vocabularies.TOOL} is") == [
        12,
        15,
    ]  # an added token holds a space
    assert ends_of(backend_of("unigram_folded"), "\u0301") == []


@pytest.mark.parametrize("text", ["a0b", "0 ", "a0 ", "0a"])
def test_offsets_behind_a_character_that_the_model_passes_over_are_refused(text: str) -> None:
    """The library counts the characters of the tokens, as if the one without a token were not
    there."""
    backend = backend_of("characters")
    assert backend.encode(text).offsets[-1][1] < len(text)
    assert ends_of(backend, text) is None


def test_a_character_that_the_model_passes_over_at_the_end_moves_nothing() -> None:
    assert ends_of(backend_of("characters"), "ab0") == [1, 2]
    assert ends_of(backend_of("characters"), "0") == []


def drops(char: str) -> Any:
    """SentencePiece's character map with one rule, that `char` becomes nothing: a double-array trie
    of one byte."""
    has_leaf, label = 1 << 8, ord(char)
    units = [256 << 10] + [
        1 << 31
    ] * 1023  # the root's children stand from 256 on; nobody has label 0
    units[256 ^ label] = label | has_leaf | (512 << 10)
    units[256 ^ label ^ 512] = 0  # where its replacement starts
    return normalizers.Precompiled(
        struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + b"\0\0"
    )


@pytest.mark.parametrize("text", ["\x01abc", "\x01abc ", "\x01  "])
def test_offsets_shifted_by_a_character_map_are_refused(text: str) -> None:
    tokenizer = Tokenizer(
        models.BPE(vocab={char: index for index, char in enumerate("abc ")}, merges=[])
    )
    tokenizer.normalizer = drops("\x01")
    assert tokenizer.encode(text).offsets[0] == (0, 1)  # the library's mistake
    assert ends_of(tokenizer, text) is None
    assert ends_of(tokenizer, "a\x01bc") == [1, 3, 4]
    assert ends_of(tokenizer, "abc") == [1, 2, 3]


def test_a_pile_of_marks_is_refused_at_once_if_normalising_changes_it_and_scored_if_not() -> None:
    pile = "e" + "\u0323\u0301" * 5000
    began = time.monotonic()
    assert ends_of(backend_of("byte_level_nfc"), pile) is None
    assert ends_of(backend_of("byte_level"), pile) is not None
    assert ends_of(backend_of("byte_level_nfd"), "e" + "\u0301" * 10_000) is not None
    assert time.monotonic() - began < 5
    assert ends_of(backend_of("byte_level_nfc"), "e" + "\u0323\u0301" * 15) is not None


def test_many_piles_of_marks_take_time_in_proportion() -> None:
    piles = "".join(chr(0x4E00 + i) + "\u0323\u0301" * 15 for i in range(300))
    backend = backend_of("byte_level_nfc")
    offsets = backend.encode(piles, add_special_tokens=False).offsets
    began = time.monotonic()
    assert Offsets(backend).ends(piles, offsets) is not None
    assert time.monotonic() - began < 2


def test_normalisation_at_the_ends_of_a_text_joins_nothing() -> None:
    """A prefix or a strip is not what two characters become together."""
    backend = Tokenizer.from_str(vocabularies.byte_level().backend_tokenizer.to_str())
    backend.post_processor = None
    backend.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Prepend("x"), normalizers.NFC()]
    )
    assert ends_of(backend, " a\u0323 ") == [3, 3, 3, 3]  # x and ạ
    backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Prepend("x")])
    assert ends_of(backend, "a\u0323") == [1, 1, 2, 2]


def test_ends_are_those_of_the_offsets_where_nothing_was_lost() -> None:
    backend = backend_of("byte_level_nfc")
    text = "naïve café, 日本語\r\n👩‍👩‍👧‍👦 مرحبا"
    offsets = backend.encode(text, add_special_tokens=False).offsets
    np.testing.assert_array_equal(Offsets(backend).ends(text, offsets), [end for _, end in offsets])
