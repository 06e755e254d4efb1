"""The promise on numbers, kept on the device: in bfloat16 |batched - truth| <= 2 max |alone -
truth| + float32's bound, in float32 batched is alone, and truth, within that bound. Truth is the
same weights in float32, as transformers runs them; alone in bfloat16 is transformers', too, so that
no fault of ours hides in it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.figure import Figure, Result
from gpu.shapes import NORMED, WIDE, WINDOWED, Shape, build
from gpu.stand import Stand, Work
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Outputs, Row, RowRequest
from tokenreward.forward.layout import ByKind, differences, float32_bounds, gap
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import PlainLayout

LOGITS = Needs(frozenset({1.0, 0.7}), entropies=frozenset({1.0}))
DENSE = Needs(values=True, attention=frozenset({"last", "last_step", "mean_step"}))
ENDS = Needs(pooled=True, attention=frozenset({"last"}))


@dataclass(frozen=True)
class Case:
    shape: Shape
    task: Any
    needs: Needs
    what: str


CASES = (
    Case(WIDE, "causal_lm", LOGITS, "logits"),
    Case(NORMED, "causal_lm", LOGITS, "logits"),
    Case(WINDOWED, "causal_lm", LOGITS, "logits"),
    Case(WIDE, "reward_model", DENSE, "values"),
    Case(WIDE, "reward_model", ENDS, "ends"),
)


def exact(stand: Stand) -> Iterator[Result]:
    """Each case with rows that share nothing and with a shared prompt among them; the probe is not
    asked."""
    for case in CASES:
        stand.release()
        yield from _case(stand, case)


def _case(stand: Stand, case: Case) -> Iterator[Result]:
    model = build(stand.shape(case.shape), case.task, stand.clock.device)
    wide = stand.checkpoint(copy.deepcopy(model).float(), case.task)
    ragged = _ragged(stand, case)
    sets = {"mixed": ragged, "shared prompt": ragged[:3] + _shared(stand, case)}
    narrow = stand.checkpoint(model, case.task)
    truths, theirs = (
        {name: _plain(of, work) for name, work in sets.items()} for of in (wide, narrow)
    )
    half, full = _layout(narrow, case), _layout(wide, case)
    title = f"exact {case.shape.name} {case.what}"
    stand.say(f"{title}: {half.note}")
    for name, work in sets.items():
        truth, bounds = truths[name], float32_bounds(truths[name])
        noise = differences(theirs[name], truth)
        coarse = {kind: 2 * noise[kind] + bound for kind, bound in bounds.items()}
        yield _tightest(f"{title} bf16, {name}", _both_ways(half, work, truth), coarse)
        yield _tightest(
            f"{title} fp32, {name}, to alone", _both_ways(full, work, _alone(full, work)), bounds
        )
        yield _tightest(f"{title} fp32, {name}, to truth", _both_ways(full, work, truth), bounds)


def _plain(checkpoint: Checkpoint, work: Work) -> list[Outputs]:
    """As transformers runs it; only what is needed, of which the plain layout may know more."""
    found = zip(PlainLayout(checkpoint).run(work), work, strict=True)
    return [
        outputs if needs.values else replace(outputs, values=None) for outputs, (_, needs) in found
    ]


def _layout(checkpoint: Checkpoint, case: Case) -> PackedLayout:
    layout = PackedLayout(checkpoint)
    layout.choose_logsumexp()
    layout.prune_last_layer(case.needs is ENDS)
    return layout


def _alone(layout: PackedLayout, work: Work) -> list[Outputs]:
    return [layout.run([each])[0] for each in work]


def _both_ways(layout: PackedLayout, work: Work, truth: Sequence[Outputs]) -> ByKind:
    """The largest difference of each kind, in this order and backwards."""
    forth, back = (
        differences(layout.run(work), truth),
        differences(layout.run(work[::-1])[::-1], truth),
    )
    return {kind: max(forth[kind], back[kind]) for kind in forth}


def _tightest(name: str, found: ByKind, bounds: ByKind) -> Figure:
    near = gap(found, bounds)
    ratio = near.difference / near.bound
    return Figure(name, near.difference, near.bound, ratio, 1, near.kind, ceiling=True)


def _ragged(stand: Stand, case: Case) -> Work:
    generator = np.random.default_rng(0)
    vocab = stand.shape(case.shape).vocab
    ids = [generator.integers(3, vocab, size=length) for length in stand.sizes.ragged]
    return [RowRequest(Row(of, max(1, len(of) // 3), len(of)), case.needs) for of in ids]


def _shared(stand: Stand, case: Case) -> Work:
    generator = np.random.default_rng(1)
    vocab = stand.shape(case.shape).vocab
    prompt, *responses = (
        generator.integers(3, vocab, size=length) for length in stand.sizes.shared
    )
    return [
        RowRequest(
            Row(np.concatenate([prompt, of]), len(prompt), len(prompt) + len(of)), case.needs
        )
        for of in responses
    ]
