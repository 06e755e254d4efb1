"""Spans must tile the response, exactly: the first starts at 0, each starts where the last ended,
the last ends at the length. Anything else is refused with the index of the first span at fault."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenreward.alignment import scored_spans, tiles
from tokenreward.errors import SpansDoNotTile

Spans = list[list[int]]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Spans, int]:
    """A random tiling, zero-width spans included, and the length that it tiles."""
    widths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    ends = np.cumsum(widths).tolist()
    return [[start, end] for start, end in zip([0, *ends[:-1]], ends, strict=True)], ends[-1]


def first_fault(spans: Spans, length: int) -> int | None:
    """The index of the first span that breaks the tiling, read off the definition."""
    position = 0
    for index, (start, end) in enumerate(spans):
        if start != position or end < start:
            return index
        position = end
    return None if position == length else len(spans) - 1


@given(tilings())
def test_every_tiling_is_accepted_and_returned_unchanged(tiling: tuple[Spans, int]) -> None:
    spans, length = tiling
    array = tiles(spans, length, param="spans")
    assert array.tolist() == spans
    assert array.dtype == np.int64


@given(tilings(), st.data())
def test_a_tiling_with_one_boundary_moved_is_refused_at_the_first_span_at_fault(
    tiling: tuple[Spans, int], data: st.DataObject
) -> None:
    spans, length = tiling
    index = data.draw(st.integers(0, len(spans) - 1))
    side = data.draw(st.integers(0, 1))
    spans[index][side] += data.draw(st.integers(-5, 5).filter(bool))
    fault = first_fault(spans, length)
    assert fault is not None
    with pytest.raises(SpansDoNotTile) as caught:
        tiles(spans, length, param="items[2].spans")
    assert caught.value.param == f"items[2].spans[{fault}]"
    assert caught.value.status == 200


@given(tilings(), st.data())
def test_a_tiling_with_a_span_dropped_doubled_or_moved_is_refused_unless_it_still_tiles(
    tiling: tuple[Spans, int], data: st.DataObject
) -> None:
    spans, length = tiling
    assume(len(spans) > 1)
    index = data.draw(st.integers(0, len(spans) - 1))
    span = spans.pop(index)
    for place in data.draw(st.lists(st.integers(0, len(spans)), max_size=2)):
        spans.insert(place, span)
    fault = first_fault(spans, length)
    if fault is None:
        assert tiles(spans, length, param="spans").tolist() == spans
        return
    with pytest.raises(SpansDoNotTile) as caught:
        tiles(spans, length, param="spans")
    assert caught.value.param == f"spans[{fault}]"


@given(
    st.lists(st.lists(st.integers(-2, 6), min_size=2, max_size=2), max_size=4), st.integers(0, 6)
)
def test_any_spans_are_accepted_exactly_if_they_tile(spans: Spans, length: int) -> None:
    if spans and first_fault(spans, length) is None:
        assert tiles(spans, length, param="spans").tolist() == spans
    else:
        with pytest.raises(SpansDoNotTile):
            tiles(spans, length, param="spans")


@pytest.mark.parametrize("length", [0, 1, 8])
def test_no_spans_at_all_tile_nothing(length: int) -> None:
    with pytest.raises(SpansDoNotTile, match=f"{length} characters") as caught:
        tiles([], length, param="items[0].spans")
    assert caught.value.param == "items[0].spans"


@pytest.mark.parametrize("length", [7, 9])
def test_spans_of_another_length_than_the_text_are_refused_with_both_lengths(length: int) -> None:
    with pytest.raises(
        SpansDoNotTile, match=rf"end at 8 .*{length} characters \(Unicode code points\)"
    ):
        tiles([[0, 2], [2, 8]], length, param="spans")


def test_the_refusal_says_where_the_span_had_to_start() -> None:
    with pytest.raises(
        SpansDoNotTile, match=r"`spans\[1\]`: the span is \[3, 5\] but must start at 2"
    ):
        tiles([[0, 2], [3, 5]], 5, param="spans")


@given(tilings(), st.booleans())
def test_a_zero_width_span_carries_no_reward_unless_it_is_the_last_and_end_of_turn_follows(
    tiling: tuple[Spans, int], finished: bool
) -> None:
    spans, length = tiling
    scored = scored_spans(tiles(spans, length, param="spans"), finished=finished)
    for index, (start, end) in enumerate(spans):
        assert scored[index] == (end > start or (finished and index == len(spans) - 1))
