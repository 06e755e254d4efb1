"""The last layer on the wanted tokens alone: the same numbers, less work, and only where the layer
is what it seems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes import oracle, tiny
from tokenreward.checkpoints.checkpoint import Checkpoint
from tokenreward.contract import Needs, Row, RowRequest
from tokenreward.forward.packed import PackedLayout
from tokenreward.forward.probe import choose_layout

PRUNED = ("llama", "qwen3", "mistral")
ENDS = Needs(pooled=True, attention=frozenset({"last"}))


def checkpoint(model: Any, task: str) -> Checkpoint:
    return Checkpoint(model, None, task)


def rows() -> list[oracle.Response]:
    """Longer than the window of 8; two share a prompt."""
    generator = np.random.default_rng(0)
    draw = lambda size: generator.integers(3, tiny.VOCAB_SIZE, size=size)  # noqa: E731
    shared = draw(20)
    return [
        oracle.Response(p, draw(r))
        for p, r in ((draw(5), 9), (shared, 4), (draw(1), 1), (shared, 30))
    ]


def work(needs: Needs) -> list[RowRequest]:
    return [RowRequest(Row(what.ids, len(what.prompt), len(what.ids)), needs) for what in rows()]


def mlp_rows(
    layout: PackedLayout, model: Any, requests: list[RowRequest]
) -> tuple[list[Any], list[int]]:
    """The outputs, and how many tokens the MLP of each layer saw."""
    seen: list[int] = []
    hooks = [
        layer.mlp.register_forward_hook(
            lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
        )
        for layer in model.base_model.layers
    ]
    outputs = layout.run(requests)
    for hook in hooks:
        hook.remove()
    return outputs, seen


@pytest.mark.parametrize("architecture", PRUNED)
def test_a_pooled_score_and_its_attention_need_one_token_of_each_row_in_the_last_layer(
    architecture: str,
) -> None:
    model = tiny.model(architecture, "reward_model")
    exact, layout = oracle.double(model), PackedLayout(checkpoint(model, "reward_model"))
    assert layout.prune_last_layer(True)
    outputs, seen = mlp_rows(layout, model, work(ENDS))
    num_tokens = sum(len(what.ids) for what in rows()) - 20
    assert seen == [num_tokens, num_tokens, len(rows())]
    for what, found in zip(rows(), outputs, strict=True):
        truth = oracle.head_values(exact, what.ids)
        assert found.values is None
        assert abs(found.pooled - truth[-1]) <= 1e-5 * max(1.0, float(np.abs(truth).max()))
        assert (
            np.abs(found.attention["last"] - oracle.last_attention_row(exact, what.ids)).max()
            < 1e-6
        )


@pytest.mark.parametrize("architecture", PRUNED)
def test_log_probs_need_no_prompt_in_the_last_layer(architecture: str) -> None:
    model = tiny.model(architecture)
    exact, layout = oracle.double(model), PackedLayout(checkpoint(model, "causal_lm"))
    assert layout.prune_last_layer(True)
    outputs, seen = mlp_rows(layout, model, work(Needs(frozenset({1.0}))))
    assert (
        seen[-1] == sum(1 + len(what.response) for what in rows()) - 1
    )  # the shared prompt's last token once
    for what, found in zip(rows(), outputs, strict=True):
        z = oracle.logits(exact, what.ids)[len(what.prompt) - 1 :]
        bound = 1e-5 * max(1.0, float(np.abs(z).max()))
        assert np.abs(found.lse[1.0] - oracle.logsumexp(z)).max() <= bound
        assert np.abs(found.chosen - z[np.arange(len(what.response)), what.response]).max() <= bound


def test_rows_of_other_needs_in_one_batch_each_get_theirs() -> None:
    model = tiny.model("llama", "reward_model")
    exact, layout = oracle.double(model), PackedLayout(checkpoint(model, "reward_model"))
    layout.prune_last_layer(True)
    wanted = [Needs(values=True), ENDS] * 2
    mixed = [RowRequest(row, needs) for (row, _), needs in zip(work(ENDS), wanted, strict=True)]
    for what, found in zip(rows(), layout.run(mixed), strict=True):
        truth = oracle.head_values(exact, what.ids)
        assert abs(found.pooled - truth[-1]) < 1e-4
        if found.values is not None:
            assert np.abs(found.values - truth[len(what.prompt) - 1 :]).max() < 1e-4


def test_a_run_that_fails_leaves_the_layer_as_it_was() -> None:
    model = tiny.model("llama", "reward_model")
    layout = PackedLayout(checkpoint(model, "reward_model"))
    layout.prune_last_layer(True)
    with pytest.raises(IndexError):
        layout.run([RowRequest(Row(np.array([5, 10**6]), 1, 2), ENDS)])
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("granite", "differs"),
        ("gpt_oss", "raises"),
        ("phi", None),
        ("gemma2", None),
        ("gpt2", None),
    ],
)
def test_a_layer_that_only_looks_the_part_is_computed_in_full(
    architecture: str, why: str | None
) -> None:
    lines: list[str] = []
    layout = choose_layout(
        checkpoint(tiny.model(architecture), "causal_lm"), Needs(frozenset({1.0})), say=lines.append
    )
    assert layout.name == "packed"
    assert layout.last_layer is None
    assert [line for line in lines if "last layer" in line and (why or "") in line] or why is None
