"""Who owns a token: the span that holds its last character; end-of-turn belongs to the last
span."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenreward.alignment import owners


@st.composite
def boundaries(draw: st.DrawFn, length: int) -> list[int]:
    """Ends of a random partition of [0, length), zero-width pieces included."""
    inner = draw(st.lists(st.integers(0, length), max_size=10))
    return [*sorted(inner), length]


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Where the tokens of a text end, and spans that tile it."""
    length = draw(st.integers(1, 12))
    ends = draw(boundaries(length))
    cuts = draw(boundaries(length))
    return ends, [[start, end] for start, end in zip([0, *cuts[:-1]], cuts, strict=True)]


def arrays(ends: list[int], spans: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ends, dtype=np.int64), np.array(spans, dtype=np.int64)


def owner_of_character(spans: list[list[int]]) -> dict[int, int]:
    """One character at a time."""
    return {at: index for index, (start, end) in enumerate(spans) for at in range(start, end)}


@given(texts())
def test_a_token_belongs_to_the_span_of_its_last_character(
    text: tuple[list[int], list[list[int]]],
) -> None:
    ends, spans = text
    holder = owner_of_character(spans)
    for end, owner in zip(ends, owners(*arrays(ends, spans)), strict=True):
        if end > 0:  # a token without characters before the text has no last character
            assert owner == holder[end - 1]


@given(texts(), st.integers(0, 3))
def test_zero_width_spans_own_no_text_token(
    text: tuple[list[int], list[list[int]]], appended: int
) -> None:
    ends, spans = text
    owner = owners(*arrays(ends, spans), num_appended=appended)
    assert all(spans[index][1] > spans[index][0] for index in owner[: len(ends)])


@given(texts(), st.integers(0, 3))
def test_appended_tokens_belong_to_the_last_span_even_if_it_is_empty(
    text: tuple[list[int], list[list[int]]], appended: int
) -> None:
    ends, spans = text
    owner = owners(*arrays(ends, spans), num_appended=appended)
    assert len(owner) == len(ends) + appended
    assert owner[len(ends) :].tolist() == [len(spans) - 1] * appended


@given(texts(), st.integers(0, 3))
def test_owners_never_decrease_and_are_spans(
    text: tuple[list[int], list[list[int]]], appended: int
) -> None:
    ends, spans = text
    owner = owners(*arrays(ends, spans), num_appended=appended)
    assert owner.dtype == np.int64
    assert (np.diff(owner) >= 0).all()
    assert owner.min() >= 0
    assert owner.max() < len(spans)


@given(texts())
def test_a_non_empty_span_without_a_token_is_one_that_a_token_straddles_past(
    text: tuple[list[int], list[list[int]]],
) -> None:
    ends, spans = text
    owned = set(owners(*arrays(ends, spans)).tolist())
    for index, (start, end) in enumerate(spans):
        assert (index in owned) == any(
            start < token_end <= end for token_end in ends if token_end
        ) or (0 in ends and start == 0)


@pytest.mark.parametrize(
    ("ends", "spans", "expected"),
    [
        # "It is 4." as It| is| 4|. over the words of the contract's example
        ([2, 5, 7, 8], [[0, 2], [2, 5], [5, 8]], [0, 1, 2, 2]),
        # one token over everything straddles three spans and belongs to the last
        ([8], [[0, 2], [2, 5], [5, 8]], [2]),
        # a token that ends on the boundary stays before it
        ([2, 3], [[0, 2], [2, 3]], [0, 1]),
        # three byte tokens of one character share its span
        ([1, 1, 1, 2], [[0, 1], [1, 2]], [0, 0, 0, 1]),
        # tokens without characters: before the text, inside it, behind it
        ([0, 1, 1, 2, 2], [[0, 1], [1, 2]], [0, 0, 0, 1, 1]),
        # zero-width spans at the start, in the middle and at the end are stepped over
        ([1, 2], [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]], [1, 3]),
    ],
)
def test_worked_examples(ends: list[int], spans: list[list[int]], expected: list[int]) -> None:
    assert owners(*arrays(ends, spans)).tolist() == expected


def test_end_of_turn_joins_the_last_words_or_its_own_empty_span() -> None:
    ends = [2, 5]
    assert owners(*arrays(ends, [[0, 2], [2, 5]]), num_appended=1).tolist() == [0, 1, 1]
    assert owners(*arrays(ends, [[0, 2], [2, 5], [5, 5]]), num_appended=1).tolist() == [0, 1, 2]
