"""Ids of tokenizers trained here, as text + spans: whatever the text, the spans tile the
tokenizer's own decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from fakes.vocabularies import (
    BOS,
    EOS,
    JOIN_WITH_SPACES,
    KINDS,
    RESERVED,
    TOOL,
    byte_fallback,
    byte_level,
    unigram,
)
from tokenreward_client import BadArgument, NotText, text_and_spans

PIECES = st.sampled_from(
    [
        "It is",
        " 4",
        "  ",
        "\r\n",
        "\t",
        "café",
        "e\u0301",
        "日本",
        "東",
        "مرحبا",
        "\u200d",
        "x = {1: 'a'}",
        "\ufffd",
    ]
) | st.sampled_from(["👩‍👩‍👧‍👦", "👍🏽", "🇯🇵", "<0x41>", "▁", "##ing", "don't .", TOOL])
TEXTS = st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=30))


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def are_valid_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    """Whether the single-byte tokens among these ids, special ones left out, are UTF-8."""
    tokens = tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
    try:
        b"".join(
            token.encode("latin-1") if len(token) == 1 else token.encode() for token in tokens
        ).decode()
    except UnicodeDecodeError:
        return False
    return True


def assert_tiles(spans: list[list[int]], text: str, num_ids: int) -> None:
    assert len(spans) == num_ids
    edges = [0, *(end for _, end in spans)]
    assert [start for start, _ in spans] == edges[:-1]
    assert edges == sorted(edges)
    assert edges[-1] == len(text)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(
    text=TEXTS,
    specials=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([EOS, BOS, RESERVED])), max_size=3
    ),
)
def test_spans_tile_the_decoding_of_any_text(
    kind: str, text: str, specials: list[tuple[int, str]]
) -> None:
    tokenizer = KINDS[kind]()
    ids = encode(tokenizer, text)
    for position, token in specials:
        ids.insert(min(position, len(ids)), tokenizer.convert_tokens_to_ids(token))
    if kind in JOIN_WITH_SPACES and "\ufffd" in decoded(tokenizer, ids):
        with pytest.raises(NotText):
            text_and_spans(tokenizer, ids)
        return
    decoding, spans, _ = text_and_spans(tokenizer, ids)
    assert decoding == decoded(tokenizer, ids)
    assert_tiles(spans, decoding, len(ids))
    zero_width = {tokenizer.convert_tokens_to_ids(token) for token in (EOS, BOS, RESERVED)}
    assert all(
        start == end for id_, (start, end) in zip(ids, spans, strict=True) if id_ in zero_width
    )


@pytest.mark.parametrize("kind", ["byte_level", "llama_2", "gemma"])
@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_a_character_belongs_to_the_token_that_completes_it(kind: str, text: str) -> None:
    """The truth is the encoder's own offsets, which give a character to every token that holds a
    byte of it."""
    tokenizer = KINDS[kind]()
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    decoding = decoded(tokenizer, encoding.ids)
    shift = len(decoding) - len(text)  # 1 where Metaspace wrote a space before the text
    assume(encoding.ids and decoding[shift:] == text)
    next_starts = [start for start, _ in encoding.offsets[1:]] + [len(text)]
    edges = [
        min(end, start) + shift
        for (_, end), start in zip(encoding.offsets, next_starts, strict=True)
    ]
    _, spans, _ = text_and_spans(tokenizer, encoding.ids)
    assert [end for _, end in spans] == edges


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_ids_tile_or_are_refused(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))
    try:
        text, spans, _ = text_and_spans(tokenizer, ids)
    except NotText:
        assert "\ufffd" in decoded(tokenizer, ids) or (
            kind == "python_bytes" and not are_valid_bytes(tokenizer, ids)
        )
        return
    except BadArgument:
        assert ids[-2:] == [tokenizer.pad_token_id] * 2
        return
    assert kind != "python_bytes" or are_valid_bytes(tokenizer, ids)  # its decoding would hide it
    assert text == decoded(tokenizer, ids)
    assert_tiles(spans, text, len(ids))


def test_emoji_in_byte_tokens_is_owned_by_its_last_token() -> None:
    tokenizer = byte_fallback(strip=False)
    ids = [
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<0xF0>", "<0x9F>", "<0x8D>", "<0x95>", "a")
    ]
    assert text_and_spans(tokenizer, ids) == (
        "🍕a",
        [[0, 0], [0, 0], [0, 0], [0, 1], [1, 2]],
        False,
    )


def test_token_that_ends_one_character_and_begins_another_owns_the_first() -> None:
    class Bytes:
        """Tokens that are raw bytes, as tiktoken's are."""

        all_special_ids = ()
        pieces = ("日".encode()[:2], "日".encode()[2:] + "本".encode()[:1], "本".encode()[1:])

        def convert_ids_to_tokens(self, ids: list[int]) -> list[bytes]:
            return [self.pieces[id_] for id_ in ids]

        def decode(self, ids: list[int], **_: Any) -> str:
            return b"".join(self.convert_ids_to_tokens(ids)).decode()

    assert text_and_spans(Bytes(), [0, 1, 2]) == ("日本", [[0, 0], [0, 1], [1, 2]], False)


class Opaque:
    """A tokenizer whose token strings say nothing of their bytes; `pieces` are the bytes of ids 0,
    1, ..."""

    all_special_ids = ()

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"token {id_}" for id_ in ids]

    def decode(self, ids: list[int], **_: Any) -> str:
        return b"".join(self.pieces[id_] for id_ in ids).decode("utf-8", "replace")


def test_unknown_spelling_is_read_from_the_decoding() -> None:
    pizza = "🍕".encode()
    tokenizer = Opaque(b"so ", pizza[:1], pizza[1:3], pizza[3:], b"!")
    expected = [[0, 3], [3, 3], [3, 3], [3, 4], [4, 5]]
    assert text_and_spans(tokenizer, [0, 1, 2, 3, 4]) == ("so 🍕!", expected, False)


@pytest.mark.parametrize("ids", [[0, 1], [1, 0], [0, 1, 0]])
def test_unknown_spelling_with_broken_characters_is_refused(ids: list[int]) -> None:
    with pytest.raises(NotText, match=r"U\+FFFD"):
        text_and_spans(Opaque(b"so", b"\xf0"), ids)


@pytest.mark.parametrize(
    "kind", ["byte_level", "unigram", "llama_2", "gemma", "characters", "python_bytes"]
)
def test_known_spelling_is_decoded_once_however_long_the_response(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = KINDS[kind]()
    ids = encode(tokenizer, "   two spaces more, and the answer 🍕" * 5)
    decode, calls = tokenizer.decode, []
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **more: (calls.append(ids), decode(ids, **more))[1]
    )
    text_and_spans(tokenizer, ids)
    assert len([call for call in calls if len(call) > 1]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_final_special_token_means_finished_and_is_zero_width(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = [*encode(tokenizer, "the answer"), tokenizer.eos_token_id]
    text, spans, finished = text_and_spans(tokenizer, np.asarray(ids))
    assert finished
    assert spans[-1] == [len(text), len(text)]
    assert text_and_spans(tokenizer, ids[:-1]) == (text, spans[:-1], False)


def test_reserved_special_at_the_end_is_an_end_of_turn_unless_end_ids_say_otherwise() -> None:
    tokenizer = byte_level()
    ids = [*encode(tokenizer, "so"), tokenizer.convert_tokens_to_ids(RESERVED)]
    assert text_and_spans(tokenizer, ids)[2]
    assert not text_and_spans(tokenizer, ids, end_ids=[tokenizer.eos_token_id])[2]


def test_final_bos_or_unk_is_no_end_of_turn() -> None:
    tokenizer = unigram()
    for id_ in (tokenizer.bos_token_id, tokenizer.unk_token_id):
        assert not text_and_spans(tokenizer, [*encode(tokenizer, "so"), id_])[2]


def test_no_ids_are_no_text() -> None:
    assert text_and_spans(byte_level(), []) == ("", [], False)


@pytest.mark.parametrize("kind", ["byte_level", "llama_2", "gemma", "python_bytes"])
def test_response_cut_inside_a_character_raises_and_names_the_token(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = encode(tokenizer, "so 🍕")
    with pytest.raises(NotText, match="valid text") as caught:
        text_and_spans(tokenizer, ids[:-1])
    assert caught.value.index is not None
    assert caught.value.index >= len(encode(tokenizer, "so"))


def test_replacement_character_that_was_really_written_is_text() -> None:
    text, spans, _ = text_and_spans(byte_level(), encode(byte_level(), "a\ufffdb"))
    assert text == "a\ufffdb"
    assert_tiles(spans, text, len(spans))


def test_padding_is_refused() -> None:
    tokenizer = byte_level()
    with pytest.raises(BadArgument, match="padding"):
        text_and_spans(
            tokenizer, [*encode(tokenizer, "so"), tokenizer.pad_token_id, tokenizer.pad_token_id]
        )


def test_id_outside_the_vocabulary_raises() -> None:
    with pytest.raises(NotText, match=r"ids\[0\]"):
        text_and_spans(byte_level(), [10**6])


def test_decoder_that_rewrites_across_tokens_is_refused() -> None:
    class Rewriting:
        all_special_ids = ()

        def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
            return ["ab"[id_] for id_ in ids]

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(self.convert_ids_to_tokens(ids))[::-1]

    with pytest.raises(NotText, match="rewrites"):
        text_and_spans(Rewriting(), [0, 1])
