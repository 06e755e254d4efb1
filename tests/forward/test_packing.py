"""The layout of a packed batch: every row can be read back, a shared prompt stands once."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from tokenreward.contract import Row
from tokenreward.forward.packing import (
    behind_padding,
    lengthened,
    longest_row,
    num_packed,
    pack,
    sides,
)

LONG = list(range(100, 120))
PROMPTS = st.sampled_from([[5], LONG, LONG[:-1], [*LONG, 7], LONG[::-1]])
ROWS = st.lists(
    st.tuples(PROMPTS, st.lists(st.integers(3, 9), max_size=5)), min_size=1, max_size=12
)


def as_rows(pairs: list[tuple[list[int], list[int]]]) -> list[Row]:
    return [
        Row(np.array(prompt + response), len(prompt), len(prompt + response))
        for prompt, response in pairs
    ]


@given(pairs=ROWS, share=st.booleans())
def test_each_row_reads_back_with_its_positions_and_every_token_belongs_to_a_group(
    pairs: list, share: bool
) -> None:
    rows = as_rows(pairs)
    packing = pack(rows, share=share)
    for row, places in zip(rows, packing.places, strict=True):
        assert packing.ids[places].tolist() == row.ids.tolist()
        assert packing.positions[places].tolist() == list(range(len(row.ids)))
    ranges = [part for group in packing.groups for part in group]
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == len(packing.ids) == len(packing.positions)


@given(pairs=ROWS, share=st.booleans(), num_added=st.integers(0, 20))
def test_added_tokens_are_a_group_of_their_own_and_change_no_row(
    pairs: list, share: bool, num_added: int
) -> None:
    packing = pack(as_rows(pairs), share=share)
    num_tokens = len(packing.ids)
    longer = lengthened(packing, num_tokens + num_added)
    assert longer.places is packing.places
    assert longer.ids[:num_tokens].tolist() == packing.ids.tolist()
    assert longer.positions[:num_tokens].tolist() == packing.positions.tolist()
    assert longer.positions[num_tokens:].tolist() == list(range(num_added))
    assert len(longer.ids) == num_tokens + num_added
    own = ((num_tokens, num_tokens + num_added),)
    assert longer.groups == (*packing.groups, *([own] if num_added else []))


@given(pairs=ROWS, share=st.booleans(), padding=st.sampled_from([0, 1, 5]))
def test_positions_behind_padding_are_those_of_roberta(
    pairs: list, share: bool, padding: int
) -> None:
    rows = as_rows(pairs)
    packing = behind_padding(pack(rows, share=share), rows, padding)
    for row, places in zip(rows, packing.places, strict=True):
        own = RobertaEmbeddings.create_position_ids_from_input_ids(
            torch.from_numpy(row.ids)[None], padding
        )
        assert packing.positions[places].tolist() == own[0].tolist()


@given(pairs=ROWS)
def test_a_long_prompt_stands_once_however_many_rows_share_it(pairs: list) -> None:
    rows = as_rows(pairs)
    distinct = {tuple(prompt) for prompt, _ in pairs if len(prompt) >= 16}
    expected = sum(map(len, distinct)) + sum(
        len(r) + (len(p) if len(p) < 16 else 0) for p, r in pairs
    )
    assert num_packed(rows) == len(pack(rows).ids) == expected
    assert (
        num_packed(rows, share=False)
        == len(pack(rows, share=False).ids)
        == sum(len(row.ids) for row in rows)
    )


def test_rows_that_share_ids_but_not_where_the_prompt_ends_stay_apart() -> None:
    ids = np.arange(3, 40)
    packing = pack([Row(ids, 20, 37), Row(ids, 21, 37)])
    assert len(packing.ids) == 2 * len(ids)
    assert [group[1:] for group in packing.groups] == [(), ()]


def test_a_response_of_no_token_reads_the_prompt_alone() -> None:
    prompt = np.arange(3, 23)
    packing = pack([Row(prompt, 20, 20), Row(np.append(prompt, 5), 20, 21)])
    assert packing.places[0].tolist() == list(range(20))
    assert packing.groups[0][1:] == ((20, 21),)
    assert longest_row(packing.groups[0]) == 21


def test_rows_up_to_the_switch_go_together_and_so_do_the_longer_ones() -> None:
    rows = as_rows([([5], [6] * more) for more in (3, 2, 9, 1)])
    assert sides(rows, 3) == [[1, 3], [0, 2]]
    assert sides(rows, 2) == [[3], [0, 1, 2]]
    assert sides(rows, 10) == [[0, 1, 2, 3]]
    assert sides(rows, None) == [[0, 1, 2, 3]]
    assert sides([], 3) == []
