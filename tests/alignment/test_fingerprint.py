"""A fingerprint names a vocabulary: equal for equal ids of equal tokens, and for nothing else."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tokenreward.alignment import fingerprint

VOCABULARIES = st.dictionaries(
    st.text(st.characters() | st.sampled_from("\0 019"), max_size=6), st.integers(0, 50), max_size=8
)


@given(VOCABULARIES, st.randoms())
def test_the_order_of_the_tokens_does_not_matter(vocab: dict[str, int], random: object) -> None:
    entries = list(vocab.items())
    random.shuffle(entries)  # type: ignore[attr-defined]
    assert fingerprint(dict(entries)) == fingerprint(vocab)


@given(VOCABULARIES, VOCABULARIES)
def test_different_vocabularies_differ(one: dict[str, int], other: dict[str, int]) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


@given(VOCABULARIES.filter(bool), st.data())
def test_one_more_one_less_or_one_moved_token_shows(
    vocab: dict[str, int], data: st.DataObject
) -> None:
    token = data.draw(st.sampled_from(sorted(vocab)))
    moved = {**vocab, token: vocab[token] + 1}
    less = {key: value for key, value in vocab.items() if key != token}
    renamed = {**less, token + "_" * 7: vocab[token]}
    assert len({fingerprint(v) for v in (vocab, moved, less, renamed)}) == 4


def test_tokens_that_hold_separators_and_digits_are_told_apart() -> None:
    assert fingerprint({"a\0001\0b": 0}) != fingerprint({"a": 0, "b": 1})
    assert fingerprint({"a1 1 b": 0}) != fingerprint({"a": 0, "b": 1})
    assert fingerprint({"1": 1}) != fingerprint({"": 11})


def test_it_is_short_lower_case_hex_that_never_changes_between_runs() -> None:
    assert re.fullmatch("[0-9a-f]{16}", fingerprint({}))
    assert (
        fingerprint({"a": 0, "b": 1}) == "4789c0d271fd2f2e"
    )  # client and server may be of different releases


def test_tokens_that_are_no_valid_unicode_have_a_fingerprint() -> None:
    assert fingerprint({"\ud800": 0}) != fingerprint({"\udfff": 0})
