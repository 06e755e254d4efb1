"""What every layout gives when it is asked first and fetched later: what it gives at once, in
whatever order."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from fakes import tiny
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.engine.runner import Runner
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.padded import PaddedLayout
from tokenreward.forward.pair import Pair, view
from tokenreward.forward.plain import PlainLayout

NEEDS = Needs(frozenset({1.0}))


def checkpoint(seed: int) -> Checkpoint:
    return Checkpoint(tiny.model("llama", seed=seed), None, "causal_lm")


LAYOUTS: dict[str, Any] = {
    "packed": lambda: PackedLayout(checkpoint(0)),
    "padded": lambda: PaddedLayout(checkpoint(0)),
    "plain": lambda: PlainLayout(checkpoint(0)),
    "pair": lambda: Pair(PackedLayout(checkpoint(0)), PlainLayout(checkpoint(1))),
}


def work(seed: int) -> list[RowRequest]:
    generator = np.random.default_rng(seed)
    rows = [Row(generator.integers(3, tiny.VOCAB_SIZE, size=n), 2, n) for n in (5, 40, 3)]
    return [RowRequest(Row(rows[0].ids, 2, 5, model="reference"), NEEDS)] + [
        RowRequest(row, NEEDS) for row in rows
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_fetched_later_and_out_of_order_outputs_are_those_of_run(name: str) -> None:
    layout = LAYOUTS[name]()
    first, second = layout.launch(work(0)), layout.launch(work(1))
    for requests, pending in ((work(1), second), (work(0), first)):
        for found, expected in zip(pending.result(), layout.run(requests), strict=True):
            np.testing.assert_array_equal(found.chosen, expected.chosen)
            np.testing.assert_array_equal(found.lse[1.0], expected.lse[1.0])


def views(make: Any) -> Pair:
    """Two layouts of one model."""
    of = checkpoint(0)
    layout = make(of)
    as_it_is = partial(view, of.model, of.model.config._attn_implementation)
    return Pair(layout, layout, views={"policy": as_it_is, "reference": as_it_is})


@pytest.mark.parametrize(
    ("make", "ahead"),
    [
        (LAYOUTS["packed"], True),
        (LAYOUTS["padded"], True),
        (LAYOUTS["plain"], False),
        (LAYOUTS["pair"], False),
        (lambda: Pair(LAYOUTS["packed"](), LAYOUTS["packed"]()), True),
        (lambda: views(PackedLayout), True),
        (lambda: views(PlainLayout), False),
    ],
    ids=["packed", "padded", "plain", "half a pair", "pair", "views of packed", "views of plain"],
)
def test_only_a_layout_that_does_not_wait_is_asked_ahead_and_only_where_the_device_lets_it(
    make: Any, ahead: bool
) -> None:
    layout = make()
    assert Runner(layout, num_ahead=2).num_ahead == 2 * ahead
    assert Runner(layout).num_ahead == 0
