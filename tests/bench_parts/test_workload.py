"""The workload is the same in every run, and shaped as it says."""

from __future__ import annotations

import numpy as np

from bench import workload
from tokenreward.contract import Needs

NEEDS = Needs(values=True)


def test_the_mix_is_the_same_every_time() -> None:
    for one, other in zip(workload.mix(2), workload.mix(2), strict=True):
        assert np.array_equal(one.ids, other.ids)
    assert workload.describe(workload.mix(16)) == DESCRIBED


DESCRIBED = (
    "128 items, 16 prompts, tokens 96259 naive / 45131 computed, length median 667, longest 2362"
)


def test_groups_of_8_share_a_prompt_and_no_response() -> None:
    items = workload.mix(3)
    assert len(items) == 24
    assert len({item.prompt.tobytes() for item in items}) == 3
    assert len({item.response.tobytes() for item in items}) == 24
    assert all(items[place].prompt is items[place - place % 8].prompt for place in range(24))


def test_more_groups_begin_with_the_same_items() -> None:
    few, many = workload.mix(2), workload.mix(4)
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(few, many, strict=False))


def test_batches_keep_the_order_and_the_budget_with_a_shared_prompt_counted_once() -> None:
    work = workload.rows(workload.mix(4), NEEDS)
    batches = workload.budgeted(work, max_tokens=4096)
    assert [id(row) for batch in batches for row, _ in batch] == [id(row) for row, _ in work]
    assert len(batches) > 2
    for batch in batches:
        prompts = {row.ids[: row.start].tobytes(): row.start for row, _ in batch}
        assert sum(prompts.values()) + sum(row.stop - row.start for row, _ in batch) <= 4096


def test_ids_are_words_of_the_models_and_none_ends_a_turn() -> None:
    ids = np.concatenate([item.ids for item in workload.mix(4, vocab_size=400)])
    assert ids.min() >= 3
    assert ids.max() < 400


def test_lengths_are_log_normal_in_an_order_that_pads() -> None:
    lengths = workload.log_normal(32)
    assert np.isclose(np.median(lengths), 267, rtol=0.05)
    assert np.isclose(np.std(np.log(lengths)), 0.7, rtol=0.1)
    assert max(lengths) <= 4 * 267
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
