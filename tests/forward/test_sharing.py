"""Rows that share a prompt, read once, against float64 truth row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fakes import oracle, tiny
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.plain import PlainLayout

NEEDS = Needs(
    frozenset({1.0, 0.7}), frozenset({1.0}), attention=frozenset({"last", "last_step", "mean_step"})
)


def grouped() -> list[oracle.Response]:
    """Two groups, interleaved, longer than the sliding windows of 8, and rows that share
    nothing."""
    generator = np.random.default_rng(0)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    first, second = draw(30), draw(17)
    prompts = [first, second, first, draw(25), second, first, draw(3)]
    return [
        oracle.Response(prompt, draw(size))
        for prompt, size in zip(prompts, (9, 1, 21, 4, 13, 2, 6), strict=True)
    ]


def layouts(architecture: str, task: str) -> tuple[object, PackedLayout, PlainLayout]:
    model = tiny.model(architecture, task)
    exact = oracle.double(model)
    plain = PlainLayout(Checkpoint(tiny.model(architecture, task), None, task))
    return exact, PackedLayout(Checkpoint(model, None, task)), plain


def assert_close(fast: np.ndarray, naive: np.ndarray, truth: np.ndarray) -> None:
    bound = 1e-5 * max(1.0, float(np.abs(truth).max()))
    assert fast.shape == truth.shape
    assert np.abs(fast - truth).max() <= np.abs(naive - truth).max() + bound


@pytest.mark.parametrize("architecture", tiny.PACKED)
def test_a_language_model_that_reads_a_prompt_once_is_as_exact(architecture: str) -> None:
    exact, packed, plain = layouts(architecture, "causal_lm")
    items = grouped()
    work = [RowRequest(Row(what.ids, len(what.prompt), len(what.ids)), NEEDS) for what in items]
    assert (
        packed.num_computed([row for row, _ in work])
        == sum(len(row.ids) for row, _ in work) - 2 * 30 - 17
    )
    for what, fast, slow in zip(items, packed.run(work), plain.run(work), strict=True):
        rows = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        assert_close(fast.chosen, slow.chosen, rows[np.arange(len(what.response)), what.response])
        for t in (1.0, 0.7):
            assert_close(fast.lse[t], slow.lse[t], oracle.logsumexp(rows / t))
        attention = oracle.last_layer_attention(exact, what.ids)
        for reading, truth in (
            ("last", attention[-1]),
            ("last_step", attention[-2]),
            ("mean_step", oracle.mean_step(attention, what)),
        ):
            assert_close(fast.attention[reading], slow.attention[reading], truth)


@pytest.mark.parametrize("architecture", tiny.REWARD_MODELS)
def test_a_reward_model_that_reads_a_prompt_once_is_as_exact(architecture: str) -> None:
    exact, packed, plain = layouts(architecture, "reward_model")
    items, needs = grouped(), Needs(values=True)
    work = [RowRequest(Row(what.ids, len(what.prompt), len(what.ids)), needs) for what in items]
    for what, fast, slow in zip(items, packed.run(work), plain.run(work), strict=True):
        truth = oracle.head_values(exact, what.ids)
        assert_close(fast.values, slow.values, truth[len(what.prompt) - 1 :])
        assert abs(fast.pooled - truth[-1]) <= 1e-5 * max(1.0, float(np.abs(truth).max()))


def test_in_bf16_a_shared_prompt_stays_within_twice_the_noise_of_alone() -> None:
    model = tiny.model("llama")
    exact = oracle.double(model)
    packed = PackedLayout(Checkpoint(model.to(torch.bfloat16), None, "causal_lm"))
    items = grouped()
    work = [RowRequest(Row(what.ids, len(what.prompt), len(what.ids)), NEEDS) for what in items]
    together, alone = packed.run(work), [packed.run([entry])[0] for entry in work]
    truth = [
        oracle.logsumexp(oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]) for what in items
    ]
    largest = max(float(np.abs(rows).max()) for rows in truth)
    noise = max(
        float(np.abs(own.lse[1.0] - rows).max()) for own, rows in zip(alone, truth, strict=True)
    )
    for fast, rows in zip(together, truth, strict=True):
        assert np.abs(fast.lse[1.0] - rows).max() <= 2 * noise + 1e-5 * largest
